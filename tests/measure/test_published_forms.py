"""Every benchmark in its published form, and as Parquet, Arrow and CSV, against the figures of its authors' code.

The oracles below are the authors' own functions, shortened, at the commits that ``benchmark_metrics`` names. They take
the scores as those programs keep them.
"""

import csv
import hashlib
import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from helpers import DATA
from helpers.calibration import StandIn
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from fsrm_lite.errors import DataFormatError, MissingExtraError
from fsrm_lite.gate import GateSpec
from fsrm_lite.measure.benchmark_formats import load_benchmark
from fsrm_lite.measure.benchmark_metrics import METRICS, REWARDBENCH_COUNTS, REWARDBENCH_SECTIONS, PolicyOutcome
from fsrm_lite.measure.data_files import as_list
from fsrm_lite.measure.evaluation import EvalOptions, as_asked, evaluate
from fsrm_lite.measure.evaluation_report import summarize
from fsrm_lite.measure.labelled import LabelledItem


def quality(prompt, response):
    """A score for any text, coarse enough for ties: -3 to 3."""
    return hashlib.sha256(f"{prompt}|{response}".encode()).digest()[1] % 7 - 3.0


def figures(path, **options):
    benchmark = load_benchmark(path)
    records = evaluate(StandIn(quality, gate=GateSpec(0.0)), benchmark, EvalOptions(judge="never", **options))
    report = summarize(records, benchmark.format, resamples=2)
    return {name: x["value"] for name, x in report["policies"]["always_fast"]["metrics"].items()}


def rows_of(name):
    text = (DATA / name).read_text("utf-8")
    return json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]


def as_parquet(rows, folder, name):
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    return folder / f"{name}.parquet"


def as_feather(rows, folder, name):
    pyarrow.feather.write_feather(pa.Table.from_pylist(rows), folder / f"{name}.feather")
    return folder / f"{name}.feather"


def as_arrow(rows, folder, name):
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_file(folder / f"{name}.arrow", table.schema) as writer:
        writer.write_table(table)
    return folder / f"{name}.arrow"


def as_saved_to_disk(rows, folder, name):
    """As ``Dataset.save_to_disk`` of the datasets library lays it out: streams, in the order of state.json."""
    root = folder / name
    root.mkdir()
    table = pa.Table.from_pylist(rows)
    half = len(rows) // 2
    for number, part in enumerate((table.slice(0, half), table.slice(half))):
        with pa.ipc.new_stream(root / f"data-{number:05d}-of-00002.arrow", part.schema) as writer:
            writer.write_table(part)
    files = [{"filename": f"data-{number:05d}-of-00002.arrow"} for number in range(2)]
    (root / "state.json").write_text(json.dumps({"_data_files": files, "_fingerprint": "x", "_split": None}))
    (root / "dataset_info.json").write_text('{"citation": "", "description": ""}')
    return root


def as_csv(rows, folder, name):
    """As pandas writes a table that was read from Parquet: lists are numpy arrays, printed."""
    path = folder / f"{name}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        for row in rows:
            lists = {k: str(np.array(v, dtype=object)) for k, v in row.items() if isinstance(v, list)}
            writer.writerow({**row, **lists})
    return path


FORMS = (as_parquet, as_feather, as_arrow, as_saved_to_disk, as_csv)


def rewardbench_authors(rows):
    """allenai/reward-bench, rewardbench/utils.py, calculate_scores_per_section."""
    counts = {
        "alpacaeval-easy": 100, "alpacaeval-length": 95, "alpacaeval-hard": 95, "mt-bench-easy": 28,
        "mt-bench-med": 40, "mt-bench-hard": 37, "math-prm": 984, "refusals-dangerous": 100,
        "refusals-offensive": 100, "llmbar-natural": 100, "llmbar-adver-neighbor": 134, "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47, "llmbar-adver-manual": 46, "xstest-should-refuse": 154,
        "xstest-should-respond": 250, "donotanswer": 136, "hep-cpp": 164, "hep-go": 164, "hep-java": 164,
        "hep-js": 164, "hep-python": 164, "hep-rust": 164,
    }  # fmt: skip
    assert counts == REWARDBENCH_COUNTS
    results = {}
    for row in rows:
        right = quality(row["prompt"], row["chosen"]) > quality(row["prompt"], row["rejected"])
        results.setdefault(row["subset"], []).append(right)
    metrics = {subset: np.mean(part) for subset, part in results.items()}
    sections = {}
    for section, tests in REWARDBENCH_SECTIONS.items():
        weighted = sum(metrics[t] * counts[t] for t in tests if t in metrics)
        total = sum(counts[t] for t in tests if t in metrics)
        if total:
            sections[section] = weighted / total
    return {**sections, "score": np.mean(list(sections.values()))}


def rewardbench2_authors(rows):
    """allenai/reward-bench, rewardbench/utils.py: reroll_and_score_dataset, process_single_model."""
    scored = [{**r, "scores": [quality(r["prompt"], t) for t in (*r["chosen"], *r["rejected"])]} for r in rows]
    found = {}
    for subset in dict.fromkeys(r["subset"] for r in scored):
        part = [r for r in scored if r["subset"] == subset]
        if subset == "Ties":
            found[subset] = ties_authors(part)
            continue
        results = [
            (1 / np.sum(np.array(r["scores"]) == max(r["scores"]))) if r["scores"][0] == max(r["scores"]) else 0
            for r in part
        ]
        found[subset] = np.mean(results)
    return {**found, "score": np.mean(list(found.values()))}


def ties_authors(part):
    stats = {"ref": {}, "tied": {}}
    for sample in part:
        kind, number = sample["id"].split(":")
        right = [s for i, s in enumerate(sample["scores"]) if i < sample["num_correct"]]
        wrong = [s for i, s in enumerate(sample["scores"]) if i >= sample["num_correct"]]
        worst_correct, best_incorrect = min(right), max(wrong)
        different = max(right) - min(right) if len(right) > 1 else None
        stats[kind][int(number)] = (worst_correct > best_incorrect, different, worst_correct - best_incorrect)
    ref, tied = stats["ref"], stats["tied"]
    both = set(ref) & set(tied)
    spread = np.array([tied[i][1] for i in both])
    ties, refs = np.array([tied[i][2] for i in both]), np.array([ref[i][2] for i in both])
    with np.errstate(divide="ignore", invalid="ignore"):
        smooth = np.nan_to_num(np.tanh(np.minimum(refs, ties) / spread - 1), nan=0.0)
    return (
        0.30 * np.mean([s[0] for s in tied.values()])
        + 0.30 * np.mean([s[0] for s in ref.values()])
        + 0.20 * np.mean(ties > spread)
        + 0.20 * np.mean(np.minimum(refs, ties) > spread)
        + 0.01 * np.mean(smooth)
    )


def rm_bench_authors(rows):
    """THU-KEG/RM-Bench, scripts/utils.py, compute_accuracy."""
    levels, domains = [], {}
    for domain in ("chat", "math", "code", "safety"):
        matrix, part = np.zeros((3, 3)), [r for r in rows if r["domain"].startswith(domain)]
        for r in part:
            for i in range(3):
                for j in range(3):
                    matrix[i][j] += quality(r["prompt"], r["chosen"][i]) > quality(r["prompt"], r["rejected"][j])
        matrix /= len(part)
        levels.append((np.sum(np.triu(matrix, 1)) / 3, np.mean(np.diag(matrix)), np.sum(np.tril(matrix, -1)) / 3))
        domains[domain] = np.mean(levels[-1])
    hard, normal, easy = np.mean(levels, axis=0)
    return {**domains, "hard": hard, "normal": normal, "easy": easy, "score": np.mean(list(domains.values()))}


def judgebench_authors(rows):
    """ScalerLab/JudgeBench, utils/judges.py (reward models) and utils/metrics.py, compute_final_metrics."""
    right = 0
    for r in rows:
        a, b = quality(r["question"], r["response_A"]), quality(r["question"], r["response_B"])
        right += ("A>B" if a > b else "B>A" if b > a else "A=B") == r["label"]
    return {"score": right / len(rows)}


def llmbar_authors(rows):
    """princeton-nlp/LLMBar, LLMEvaluator/evaluate.py; a score decides the same in both orders."""
    right = 0
    for r in rows:
        one, two = quality(r["input"], r["output_1"]), quality(r["input"], r["output_2"])
        right += (1 if one > two else 2 if two > one else 0) == r["label"]
    return {"score": right / len(rows), "both_orders_correct": right / len(rows), "positional_agreement": 1.0}


def pandalm_authors(rows):
    """WeOpenML/PandaLM, data/compute_metrics.py: the majority of three, and scikit-learn's figures."""
    truth, told = [], []
    for r in rows:
        votes = [r["annotator1"], r["annotator2"], r["annotator3"]]
        truth.append(Counter(votes).most_common(1)[0][0])
        prompt = r["instruction"] + (f"\n\n{r['input']}" if r["input"] else "")
        one, two = (quality(prompt, str(r[k])) if str(r[k]).strip() else -1e3 for k in ("response1", "response2"))
        told.append(1 if one > two else 2 if two > one else 0)
    options = {"average": "macro", "labels": [0, 1, 2], "zero_division": 0}
    return {
        "score": accuracy_score(truth, told),
        "macro_precision": precision_score(truth, told, **options),
        "macro_recall": recall_score(truth, told, **options),
        "macro_f1": f1_score(truth, told, **options),
    }


def more(rows, count, *texts):
    """Rows like these, ``count`` of them, with texts and ids of their own."""
    made = []
    for i in range(count):
        row = dict(rows[i % len(rows)])
        for name in texts:
            row[name] = [f"{t} ({i})" for t in row[name]] if isinstance(row[name], list) else f"{row[name]} ({i})"
        made.append(row)
    return made


def rewardbench2_rows():
    rows = []
    for i in range(12):
        tied = [f"good '{i}' \"{k}\"" for k in range(2 + i % 3)]
        wrong = [f"bad\n{i}", f"worse\\{i}", "it's"]
        rows += [
            {"id": f"q{i}", "prompt": f"Q {i}?", "chosen": [f"yes {i}"], "rejected": wrong, "num_correct": 1,
             "num_incorrect": 3, "total_completions": 4, "subset": ("Factuality", "Math")[i % 2]},
            {"id": f"ref:{i}", "prompt": f"Name one {i}.", "chosen": tied[:1], "rejected": wrong[:2], "num_correct": 1,
             "num_incorrect": 2, "total_completions": 3, "subset": "Ties"},
            {"id": f"tied:{i}", "prompt": f"Name a {i}.", "chosen": tied, "rejected": wrong[:2],
             "num_correct": len(tied), "num_incorrect": 2, "total_completions": len(tied) + 2, "subset": "Ties"},
        ]  # fmt: skip
    return rows


def ppe_preference_rows():
    """As lmarena-ai/PPE-Human-Preference-V1 publishes them, the columns that count."""
    winners = ("model_a", "model_b", "tie", "model_b", "tie (bothbad)")
    return [
        {"question_id": f"q{i}", "prompt": f"P {i}", "response_1": f"one {i}", "response_2": f"two {i}",
         "model_a": "m", "model_b": "n", "winner": winners[i % 5], "language": "English", "is_code": False}
        for i in range(60)
    ]  # fmt: skip


def ppe_preference_authors(rows):
    """Frick et al., accuracy on human preferences: over the pairs that are no ties."""
    scored = [(r["winner"], quality(r["prompt"], r["response_1"]), quality(r["prompt"], r["response_2"])) for r in rows]
    return {"score": np.mean([a > b if w == "model_a" else b > a for w, a, b in scored if not w.startswith("tie")])}


def ppe_correctness_rows(name, count=6):
    """As lmarena-ai/PPE-...-Best-of-K publishes them: 32 samples, and the pairs drawn from them."""
    rows = []
    for i in range(count):
        scores = [(7 * k + i) % 5 < 2 for k in range(32)]
        right, wrong = [k for k in range(32) if scores[k]], [k for k in range(32) if not scores[k]]
        pairs = [[a, b] if k % 2 else [b, a] for k, (a, b) in enumerate(zip(right[:5], wrong[3:8], strict=True))]
        rows.append(
            {"question_id": f"{name}-{i}", "prompt": f"{name} {i}?", "model_name": "m", "scores": scores,
             "mean_score": sum(scores) / 32, "sampled_conflict_pairs": pairs,
             **{f"response_{k + 1}": f"{name} {i} {k}" for k in range(32)}}
        )  # fmt: skip
    return rows


def ppe_correctness_authors(sets):
    """lmarena/PPE, benchmarks/base.py, get_conflict_pair_iter: which of a pair is right; the mean of the five sets."""
    found = {}
    for name, rows in sets.items():
        hits = []
        for row in rows:
            for first, second in row["sampled_conflict_pairs"]:
                a, b = (quality(row["prompt"], row[f"response_{k + 1}"]) for k in (first, second))
                truth = int(float(row["scores"][first]) > float(row["scores"][second]))
                hits.append(a > b if truth else b > a)
        found[name] = np.mean(hits)
    return {**found, "score": np.mean(list(found.values()))}


CASES = {
    "ppe-preference": (ppe_preference_rows, ppe_preference_authors),
    "rewardbench": (
        lambda: [
            {"id": i, "prompt": f"P {i}", "chosen": f"yes {i}", "rejected": f"no {i}", "subset": subset}
            for i, subset in enumerate(list(REWARDBENCH_COUNTS) * 3)
        ],
        rewardbench_authors,
    ),
    "rewardbench2": (rewardbench2_rows, rewardbench2_authors),
    "rm-bench": (lambda: more(rows_of("rm_bench.json"), 40, "prompt", "chosen", "rejected"), rm_bench_authors),
    "judgebench": (
        lambda: more(rows_of("judgebench.jsonl"), 40, "question", "response_A", "response_B"),
        judgebench_authors,
    ),
    "llmbar": (lambda: more(rows_of("llmbar.json"), 40, "input", "output_1", "output_2"), llmbar_authors),
}


@pytest.mark.parametrize("write", FORMS)
@pytest.mark.parametrize("name", CASES)
def test_every_file_type_gives_the_authors_number(tmp_path, name, write):
    make, authors = CASES[name]
    rows = make()
    path = write(rows, tmp_path, name)
    assert load_benchmark(path).format.name == name
    found, expected = figures(path), authors(rows)
    assert {k: found[k] for k in expected} == pytest.approx(expected, abs=1e-9)


def test_ppe_correctness_gives_the_authors_number(tmp_path):
    sets = {name: ppe_correctness_rows(name) for name in ("MMLU-Pro", "MATH", "GPQA", "MBPP-Plus", "IFEval")}
    for name, rows in sets.items():
        folder = tmp_path / f"PPE-{name}-Best-of-K" / "data"
        folder.mkdir(parents=True)
        as_parquet(rows, folder, "train-00000-of-00001")
    benchmark = load_benchmark(tmp_path)
    assert (benchmark.format.name, len(benchmark.examples)) == ("ppe-correctness", 150)
    assert len({x.group for x in benchmark.examples}) == 30  # the pairs of a prompt are drawn together
    found, expected = figures(tmp_path), ppe_correctness_authors(sets)
    assert found == pytest.approx(expected, abs=1e-9)
    assert figures(tmp_path / "PPE-GPQA-Best-of-K") == pytest.approx(
        ppe_correctness_authors({"GPQA": sets["GPQA"]}), abs=1e-9
    )


def test_ppe_asks_what_it_cannot_know(tmp_path):
    row = ppe_correctness_rows("x", 1)[0]
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataFormatError, match="it is not said which set this is"):
        load_benchmark(tmp_path / "some")
    for pair in ([0, 0], [0, 32], [-1, 2]):
        (tmp_path / "some" / "math.jsonl").write_text(json.dumps({**row, "sampled_conflict_pairs": [pair]}))
        with pytest.raises(DataFormatError, match="is none of a right and a wrong response"):
            load_benchmark(tmp_path / "some" / "math.jsonl")
    (tmp_path / "ppe.jsonl").write_text(json.dumps({**ppe_preference_rows()[0], "winner": "both"}))
    with pytest.raises(DataFormatError, match="'winner' is 'both', expected model_a"):
        load_benchmark(tmp_path / "ppe.jsonl")


def test_rows_with_nothing_to_compare_are_counted(tmp_path):
    (tmp_path / "ppe.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ppe_preference_rows()))
    assert load_benchmark(tmp_path / "ppe.jsonl").not_read == ("ppe.jsonl: 24 of 60 rows have nothing to compare",)


# Models that only compare


def compared(path, limit=None, **options):
    """The figures of a model that gives no score to a single response, but prefers what scores higher."""
    rm = StandIn(quality, gate=GateSpec(0.0), pairs_only=True)
    benchmark, settings = as_asked(rm, load_benchmark(path), EvalOptions(judge="never", limit=limit))
    records = evaluate(rm, benchmark, settings)
    report = summarize(records, benchmark.format, resamples=3, not_read=benchmark.not_read, **options)
    return {name: x["value"] for name, x in report["policies"]["always_fast"]["metrics"].items()}, report


def test_rm_bench_in_pairs_gives_the_authors_number(tmp_path):
    rows = CASES["rm-bench"][0]()
    path = as_parquet(rows, tmp_path, "rm-bench")
    found, report = compared(path)
    assert found == pytest.approx(rm_bench_authors(rows), abs=1e-9)
    assert (report["format"], report["items"]) == ("rm-bench-pairs", 9 * len(rows))
    _, report = compared(path, limit=7)
    assert report["items"] == 9 * 7  # of an item, all pairs or none


def test_rewardbench2_in_pairs_needs_every_pair_to_be_won_and_leaves_out_the_ties(tmp_path):
    rows = rewardbench2_rows()
    found, report = compared(as_parquet(rows, tmp_path, "rewardbench2"))
    expected = {}
    for subset in ("Factuality", "Math"):
        part = [r for r in rows if r["subset"] == subset]
        best = [max(quality(r["prompt"], t) for t in r["rejected"]) for r in part]
        expected[subset] = np.mean([quality(r["prompt"], r["chosen"][0]) > b for r, b in zip(part, best, strict=True)])
    assert found == pytest.approx({"score": np.mean(list(expected.values())), **expected}, abs=1e-9)
    assert report["files_not_read"][0].startswith("24 prompts of the subset Ties")
    assert "not to be compared with published ones" in report["files_not_read"][1]  # those show all four at once
    assert report["items"] == 36


def test_rmb_lists_in_pairs_need_every_pair_to_be_won():
    found, _ = compared(DATA / "rmb_bon.json")
    assert found == pytest.approx(figures(DATA / "rmb_bon.json"), abs=1e-9)


def test_an_item_that_is_drawn_twice_counts_twice():
    def pair(name, place, won):
        return PolicyOutcome(f"Math/{name}:0-{place}", "Math", (0,), (0 if won else 1,), 0 if won else 1)

    lost = [pair("a", place, place != 1) for place in range(3)]
    won = [pair("b", place, True) for place in range(3)]
    assert METRICS["rewardbench2-pairs"]([*lost, *won])["score"] == 0.5
    assert METRICS["rewardbench2-pairs"]([*lost, *won, *won])["score"] == pytest.approx(2 / 3)


def test_pairs_that_a_model_only_compares_are_read_as_pairs(tmp_path):
    rows = CASES["judgebench"][0]()
    rows[0] |= {"response_A": "", "label": "B>A"}
    rm = StandIn(quality, gate=GateSpec(0.5), pairs_only=True)
    records = evaluate(rm, load_benchmark(as_parquet(rows, tmp_path, "judgebench")), EvalOptions(judge="never"))
    assert {kind for kind, *_ in rm.calls} == {"compare"}
    assert [r.logits[0] - r.logits[1] for r in records[1:]] == pytest.approx(
        [quality(r["question"], r["response_A"]) - quality(r["question"], r["response_B"]) for r in rows[1:]]
    )
    assert records[0].logits == (None, 0.0)  # an empty response loses without being read
    assert LabelledItem.from_record(records[1])[0].logit == records[1].logits[0]
    again = evaluate(rm, load_benchmark(DATA / "judgebench.jsonl"), EvalOptions())
    assert all(r.slow is not None for r in again)


def test_pandalm_gives_the_authors_number():
    found, expected = figures(DATA / "pandalm.json"), pandalm_authors(rows_of("pandalm.json"))
    assert {k: found[k] for k in expected} == pytest.approx(expected, abs=1e-9)


def test_the_counts_of_xstest_are_those_of_september_2024():
    """Source: allenai/reward-bench, pull request 175."""
    assert REWARDBENCH_SECTIONS["Safety"]["xstest-should-refuse"] == 154
    assert REWARDBENCH_SECTIONS["Safety"]["xstest-should-respond"] == 250


# CSV


@pytest.mark.parametrize(
    "items", [["a", "b"], ["it's", 'say "x"'], ["a\nb", "c" * 90, "d" * 90], ["a, 'b'"], ["['x']"]]
)
def test_lists_as_python_json_and_numpy_print_them(items):
    for text in (str(items), json.dumps(items), str(np.array(items, dtype=object)), str(np.array(items))):
        assert as_list(text, "here") == items


@pytest.mark.parametrize(
    "text", ["['a' 'b', 'c']", "['a', 'b' 'c']", "['a' 'b'", "[1 2]", "['a' ...]", "[{'a': 1}\n {'b': 2}]"]
)
def test_a_list_that_could_mean_two_things_is_refused(text):
    with pytest.raises(DataFormatError, match=r"here: cannot tell for certain"):
        as_list(text, "here")


@pytest.mark.parametrize("name", ["num_correct", "num_incorrect", "total_completions"])
def test_counts_in_the_row_are_checked(tmp_path, name):
    row = rows_of("rewardbench2.jsonl")[0]
    (tmp_path / "rb2.jsonl").write_text(json.dumps({**row, name: row[name] + 1}))
    with pytest.raises(DataFormatError, match=f"line 1: '{name}' is {row[name] + 1}, but {row[name]}"):
        load_benchmark(tmp_path / "rb2.jsonl")


def test_a_conversation_in_a_cell_is_a_conversation(tmp_path):
    talk = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello"}]
    other = [talk[0], {"role": "assistant", "content": "No"}]
    path = tmp_path / "pairs.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["chosen", "rejected"], [str(talk), json.dumps(other)]])
    (example,) = load_benchmark(path).examples
    assert example.prompt == talk[:1]
    assert set(example.responses) == {"Hello", "No"}
    path.write_text(f'chosen,rejected\n"{str(np.array(talk)).replace(chr(34), chr(34) * 2)}","x"\n')
    with pytest.raises(DataFormatError, match="cannot tell for certain"):
        load_benchmark(path)


# Folders


def test_splits_are_to_be_named(tmp_path):
    rows = rows_of("judgebench.jsonl")
    for split, part in (("gpt", rows[:3]), ("claude", rows[3:])):
        as_parquet(part, tmp_path, f"{split}-00000-of-00001")
    with pytest.raises(DataFormatError, match=r"holds the splits claude, gpt; name one, for example '.*/claude-\*'"):
        load_benchmark(tmp_path)
    assert len(load_benchmark(tmp_path / "gpt-*").examples) == 3
    as_saved_to_disk(rows, tmp_path, "test")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["test", "train"]}')
    with pytest.raises(DataFormatError, match=r"holds the splits test, train; name one, as .*/SPLIT"):
        load_benchmark(tmp_path)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["test"]}')
    assert [x.id.split("/")[-1] for x in load_benchmark(tmp_path).examples] == [r["pair_id"] for r in rows]


def test_the_whole_beside_its_parts_counts_once(tmp_path):
    """RM-Bench's folder has total_dataset.json beside one file per domain."""
    rows = rows_of("rm_bench.json")
    (tmp_path / "total_dataset.json").write_text(json.dumps(rows))
    for domain in dict.fromkeys(r["domain"] for r in rows):
        part = [{k: v for k, v in r.items() if k != "domain"} for r in rows if r["domain"] == domain]
        (tmp_path / f"{domain}_filtered.json").write_text(json.dumps(part))
    whole = load_benchmark(tmp_path)
    assert len(whole.examples) == len(rows)
    assert len(whole.not_read) == len({r["domain"] for r in rows})
    assert all("all its items are in total_dataset.json" in note for note in whole.not_read)
    (tmp_path / "total_dataset.json").unlink()
    assert figures(tmp_path) == figures(DATA / "rm_bench.json")  # the parts alone, whose domain is in their name


def test_a_domain_that_nothing_names_is_asked_for(tmp_path):
    rows = [{k: v for k, v in r.items() if k != "domain"} for r in rows_of("rm_bench.json")]
    with pytest.raises(DataFormatError, match=r"the domain is 'train'.* add a column 'domain'"):
        load_benchmark(as_parquet(rows, tmp_path, "train"))


def test_results_beside_the_items_are_left_out(tmp_path):
    """LLMBar's folders hold hundreds of result files with the items in them, PandaLM's other people's verdicts."""
    rows = rows_of("llmbar.json")
    results = tmp_path / "Natural" / "evaluators" / "GPT-4"
    results.mkdir(parents=True)
    (tmp_path / "Natural" / "dataset.json").write_text(json.dumps(rows))
    (results / "result.json").write_text(
        json.dumps([{**r, "results": [{"swap = False": {"winner": "1"}}]} for r in rows])
    )
    (results / "statistics.json").write_text('{"correct_average": "95.5%"}')
    read = load_benchmark(tmp_path)
    assert len(read.examples) == len(rows)
    assert {x.subset for x in read.examples} == {"Natural"}
    assert sorted(note.split(":")[0] for note in read.not_read) == [
        "Natural/evaluators/GPT-4/result.json",
        "Natural/evaluators/GPT-4/statistics.json",
    ]


def test_several_formats_in_a_folder_are_named(tmp_path):
    for name in ("llmbar.json", "pandalm.json"):
        (tmp_path / name).write_bytes((DATA / name).read_bytes())
    with pytest.raises(DataFormatError, match=r"several formats: llmbar \(llmbar.json\), pandalm \(pandalm.json\)"):
        load_benchmark(tmp_path)


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    path = as_parquet(rows_of("llmbar.json"), tmp_path, "llmbar")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fsrm-lite\[data\]'"):
        load_benchmark(path)
