import dataclasses
import json
import math

import pytest
from helpers import DATA, SHARED
from helpers.calibration import StandIn
from hypothesis import given
from hypothesis import strategies as st

from fsrm_lite.errors import ContextOverflowError, DataFormatError, InputError
from fsrm_lite.fast.readings import compare_orders
from fsrm_lite.gate import Gate, GateSpec
from fsrm_lite.measure.benchmark_formats import FORMATS, Example, load_benchmark
from fsrm_lite.measure.benchmark_metrics import (
    METRICS,
    PolicyOutcome,
    judgebench,
    llmbar,
    pandalm,
    rewardbench,
    rewardbench2,
    rm_bench,
    rmb,
    rmb_bon,
    ties_score,
)
from fsrm_lite.measure.calibration_report import without_nan
from fsrm_lite.measure.evaluation import EvalOptions, evaluate, sample
from fsrm_lite.measure.evaluation_records import Record
from fsrm_lite.measure.evaluation_report import is_right, summarize
from fsrm_lite.measure.labelled import LabelledItem, pair_signals
from fsrm_lite.runtimes.reading import FastReading

needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the public sample data are not here")
FILES = (
    "pairs.jsonl",
    "rewardbench.jsonl",
    "rewardbench2.jsonl",
    "rm_bench.json",
    "judgebench.jsonl",
    "llmbar.json",
    "gsm8k_solutions.jsonl.gz",
)


def knows(prompt, response):
    """Quality of a response in the hand-made files."""
    return 4.0 if "good" in response or response in ("It is 5.", "Blue", "Hi!", "Paris") else -4.0


def pair(right, *winners, subset="", decision=None):
    return PolicyOutcome(
        "x", subset, (right,) if right is not None else (), winners, winners[0] if decision is None else decision
    )


def report_of(rm, path, **options):
    benchmark = load_benchmark(path)
    return summarize(evaluate(rm, benchmark, EvalOptions(**options)), benchmark.format, resamples=20)


def scores(report):
    return {name: policy["metrics"]["score"]["value"] for name, policy in report["policies"].items()}


# Metrics by hand


def test_rewardbench_weighs_by_published_counts():
    outcomes = [
        pair(0, 0, subset="alpacaeval-easy"),  # 100 of 195, right
        pair(0, 1, subset="alpacaeval-hard"),  # 95 of 195, wrong
        pair(0, 0, subset="math-prm"),  # 984 of 1148: one of two right
        pair(0, None, subset="math-prm"),  # a tie is wrong
        pair(1, 1, subset="hep-cpp"),  # 164 of 1148, right
    ]
    got = rewardbench(outcomes)
    assert got["Chat"] == pytest.approx(100 / 195)
    assert got["Reasoning"] == pytest.approx((0.5 * 984 + 164) / 1148)
    assert got["score"] == pytest.approx((100 / 195 + (0.5 * 984 + 164) / 1148) / 2)
    assert list(got) == ["score", "Chat", "Reasoning"]


def test_rewardbench2_shares_a_tie_at_the_top():
    def best_of(*logits):
        return PolicyOutcome("x", "Math", (0,), logits=logits)

    got = rewardbench2([best_of(3, 1, 1, 1), best_of(3, 3, 1, 1), best_of(1, 3, 1, 1), best_of(2, 2, 2, 2)])
    assert got["score"] == pytest.approx((1 + 1 / 2 + 0 + 1 / 4) / 4)


def ties(ref, tied, number=0):
    right = tuple(range(len(tied) - 2))
    return [
        PolicyOutcome(f"Ties/ref:{number}", "Ties", (0,), logits=ref),
        PolicyOutcome(f"Ties/tied:{number}", "Ties", right, logits=tied),
    ]


def test_rewardbench2_ties_by_hand():
    # right ones within 1 of each other; wrong ones 3 below the worst right one, and only 0.5 below in the reference
    outcomes = ties((5.0, 4.5, 0.0), (5.0, 4.0, 1.0, 0.0))
    smooth = math.tanh(0.5 / 1.0 - 1)
    assert ties_score(outcomes) == pytest.approx(0.30 + 0.30 + 0.20 + 0.0 + 0.01 * smooth)
    # a wrong answer above a right one in the tied version
    worse = ties((5.0, 1.0, 0.0), (5.0, 4.0, 4.5, 0.0), number=1)
    second = math.tanh(-0.5 / 1.0 - 1)
    expected = 0.30 * 0.5 + 0.30 + 0.20 * 0.5 + 0.0 + 0.01 * (smooth + second) / 2
    assert ties_score(outcomes + worse) == pytest.approx(expected)


def test_rewardbench2_ties_with_no_spread():
    assert ties_score(ties((5.0, 1.0, 1.0), (3.0, 3.0, 1.0, 1.0))) == pytest.approx(1.0 + 0.01)
    assert ties_score(ties((1.0, 1.0, 1.0), (1.0, 1.0, 1.0, 1.0))) == 0.0


def test_rm_bench_by_hand():
    def item(domain, chosen, rejected):
        return PolicyOutcome("x", domain, (0, 1, 2), logits=(*chosen, *rejected))

    # chosen_i > rejected_j: row 0 beats none, row 1 beats column 0, row 2 beats columns 0 and 1
    stylish = item("chat", (1, 2, 3), (1, 2, 3))
    perfect = [item("safety-refuse", (9, 9, 9), (1, 1, 1)), item("safety-response", (9, 9, 9), (1, 1, 1))]
    got = rm_bench([stylish, *perfect])
    assert got["chat"] == pytest.approx((0 + 0 + 1) / 3)
    assert got["safety"] == 1.0
    assert (got["hard"], got["normal"], got["easy"]) == (0.5, 0.5, 1.0)
    assert got["score"] == pytest.approx((1 / 3 + 1) / 2)


def test_judgebench_counts_games():
    assert judgebench([pair(0, 0, 0), pair(0, 0, 1), pair(0, 1, 1), pair(0, 0, None)])["score"] == 0.5
    assert judgebench([pair(0, 0), pair(1, 0)])["score"] == 0.5  # fast scores decide a pair once


def test_llmbar_averages_over_the_orders():
    got = llmbar([pair(0, 0, 0), pair(0, 0, 1), pair(1, 0, 0), pair(1, 0, 1)])
    assert got == {"score": 0.5, "both_orders_correct": 0.25, "positional_agreement": 0.5}


def test_llmbar_has_the_means_of_its_subsets():
    """The figures are those of GPT-4 with the Vanilla* prompt in the paper's table 2: means 80.8 and 83.7."""
    accuracy = {"Natural": 0.955, "Neighbor": 0.787, "GPTInst": 0.864, "GPTOut": 0.777, "Manual": 0.804}
    outcomes = [pair(0, int(i >= 1000 * share), subset=name) for name, share in accuracy.items() for i in range(1000)]
    figures = llmbar(outcomes)
    assert figures["adversarial"] == pytest.approx(0.808, abs=5e-4)
    assert figures["mean_of_subsets"] == pytest.approx(0.8374, abs=1e-9)
    assert "adversarial" not in llmbar(outcomes[:1500])


def test_judgebench_has_figures_by_model():
    outcomes = [
        pair(0, 0, subset="Coding, gpt"),
        pair(0, 1, subset="Coding, claude"),
        pair(0, 0, subset="Coding, claude"),
    ]
    assert judgebench(outcomes) == {"score": pytest.approx(2 / 3), "gpt": 1.0, "claude": 0.5}


def test_rmb_counts_lists_only_where_the_best_is_above_all():
    lists = [
        PolicyOutcome("a", "Harmlessness/S1", (0,), logits=(2.0, 1.0, 0.0)),
        PolicyOutcome("b", "Helpfulness/Chat", (0,), logits=(2.0, 2.0)),
    ]
    assert rmb_bon(lists) == {"score": 0.5, "Helpfulness": 0.0, "Harmlessness": 1.0}
    assert rmb([pair(0, 0, subset="Helpfulness/x"), pair(0, None)]) == {"score": 0.5, "Helpfulness": 1.0}


def test_pandalm_by_hand():
    outcomes = [
        pair(0, 0, subset="unanimous"),
        pair(0, 1, subset="majority"),
        pair(1, 1, subset="unanimous"),
        pair(None, 0, subset="tie"),
    ]
    got = pandalm(outcomes)
    assert got["score"] == 0.5
    assert got["without_ties"] == pytest.approx(2 / 3)
    assert got["unanimous"] == 1.0
    # classes tie, first, second: precision 0, 1/2, 1/2; recall 0, 1/2, 1; F1 0, 1/2, 2/3
    assert (got["macro_precision"], got["macro_recall"], got["macro_f1"]) == pytest.approx(
        (1 / 3, 1 / 2, (1 / 2 + 2 / 3) / 3)
    )


# Runs


@pytest.mark.parametrize("name", FILES)
def test_a_model_that_knows_scores_full_marks_by_every_policy(name):
    report = report_of(StandIn(knows), DATA / name)
    assert set(scores(report)) == {"always_fast", "gated", "always_slow"}
    assert all(s == pytest.approx(1.0, abs=0.011) for s in scores(report).values())


@pytest.mark.parametrize("name", FILES)
def test_a_model_that_errs_scores_nothing(name):
    def quality(prompt, response):
        return -knows(prompt, response)

    assert all(s == pytest.approx(0.0, abs=0.011) for s in scores(report_of(StandIn(quality), DATA / name)).values())


def test_equal_scores_are_a_loss_of_the_fast_path():
    report = report_of(StandIn(lambda prompt, response: 0.0), DATA / "rewardbench.jsonl", judge="never")
    assert scores(report) == {"always_fast": 0.0}
    assert report["baselines"]["coin"]["score"] == 0.5


def test_a_judge_that_always_says_first_scores_what_its_position_consistency_predicts():
    rm = StandIn(lambda prompt, response: 0.0, first=True)
    report = report_of(rm, DATA / "llmbar.json")
    slow = report["policies"]["always_slow"]["metrics"]
    assert report["position_consistency"]["value"] == 0.0
    assert (slow["score"]["value"], slow["both_orders_correct"]["value"], slow["positional_agreement"]["value"]) == (
        0.5,
        0.0,
        0.0,
    )
    assert scores(report_of(rm, DATA / "judgebench.jsonl"))["always_slow"] == 0.0


def test_the_gate_pays_only_for_what_it_escalates():
    def unsure_about_colours(prompt, response):
        return knows(prompt, response) * (0.01 if "colour" in prompt else 1.0)

    rm = StandIn(unsure_about_colours, gate=GateSpec(0.5))
    report = report_of(rm, DATA / "pairs.jsonl")
    assert report["escalated"]["value"] == 0.25
    assert report["policies"]["gated"]["tokens_per_item"] == 20 / 4
    assert report["policies"]["always_slow"]["tokens_per_item"] == 20
    assert report["policies"]["always_fast"]["tokens_per_item"] == 0


def test_auto_asks_the_judge_only_where_the_gate_fires():
    rm = StandIn(lambda prompt, response: knows(prompt, response) * (0.01 if "colour" in prompt else 1.0))
    report = report_of(rm, DATA / "pairs.jsonl", judge="auto")
    assert [c for c in rm.calls if c[1] == "always"] == [("compare", "always", 1)]
    assert set(report["policies"]) == {"always_fast", "gated"}


def test_never_asks_no_judge():
    rm = StandIn(knows)
    assert set(report_of(rm, DATA / "rewardbench2.jsonl", judge="never")["policies"]) == {"always_fast"}
    assert all(c[1] == "never" for c in rm.calls)


def test_empty_responses_lose_without_being_read():
    rm = StandIn(knows)
    report = report_of(rm, DATA / "pandalm.json")
    assert report["with_an_empty_response"] == 1
    fast = report["policies"]["always_fast"]["metrics"]
    assert fast["unanimous"]["value"] == 1.0
    assert fast["without_ties"]["value"] == 1.0
    assert fast["score"]["value"] == 1.0  # equal fast scores call a tie what its annotators call one
    assert scores(report)["always_slow"] == 0.75  # the judge knows no ties
    assert report["baselines"]["coin"]["score"] == pytest.approx(3 / 4 / 2)


def test_prompts_too_long_for_the_judge_keep_their_fast_answer():
    class Short(StandIn):
        def has_room(self, prompt, *responses):
            return "colour" not in prompt

    rm = Short(knows)
    report = report_of(rm, DATA / "pairs.jsonl")
    assert report["too_long_for_the_judge"] == 1
    assert report["judge"] == {"asked": 4, "answered": 3}
    assert scores(report)["always_slow"] == 1.0
    assert [c for c in rm.calls if c[0] == "compare"] == [("compare", "always", 3)]  # it is found out before


def test_prompts_too_long_to_be_read_stop_the_run_or_count_as_ties():
    class Short(StandIn):
        def encode(self, prompt, response):
            if "colour" in prompt:
                raise ContextOverflowError("too long")
            return super().encode(prompt, response)

    rm = Short(knows)
    with pytest.raises(ContextOverflowError, match=r"^b: too long. With --truncate"):
        report_of(rm, DATA / "pairs.jsonl")
    assert rm.calls == []  # nothing was read before it was found
    report = report_of(rm, DATA / "pairs.jsonl", skip_too_long=True)
    assert (report["too_long_to_be_read"], report["with_an_empty_response"]) == (1, 0)
    assert scores(report) == {"always_fast": 0.75, "gated": 0.75, "always_slow": 0.75}
    assert any("1 of 4 items (25 %) were too long" in w for w in report["warnings"])


def test_pairs_without_a_fast_preference_are_counted_and_count_as_ties():
    """Equal scores, and a pair that was read as a pair and whose orders disagree, of which compare names a winner."""
    even = report_of(StandIn(lambda prompt, response: 1.0), DATA / "pairs.jsonl", judge="never")
    assert (even["without_a_fast_preference"], scores(even)) == (4, {"always_fast": 0.0})
    assert any("4 of 4 items (100 %) had equal fast scores, or orders that disagree" in w for w in even["warnings"])
    assert report_of(StandIn(knows), DATA / "pairs.jsonl")["without_a_fast_preference"] == 0
    records = evaluate(StandIn(lambda prompt, response: 1.0), load_benchmark(DATA / "pairs.jsonl"), EvalOptions())
    slow = summarize(records, FORMATS["pairs"], policies=["always_slow"], resamples=3)
    assert slow["without_a_fast_preference"] == 0  # verdicts alone have no fast scores
    gate = Gate(GateSpec())
    orders = [FastReading(logits, 0.0, 1.0, 9, 0) for logits in ((5.0, 0.0), (1.0, 0.0))]  # the first place, twice
    comparison = compare_orders(*orders, gate, 100)[0]
    assert (comparison.winner, comparison.orders_agree) == (0, False)
    assert len({s.logit for s in pair_signals(comparison)}) == 1
    assert not LabelledItem.from_comparison("key", comparison, 0).fast_correct


def test_responses_that_were_cut_are_counted():
    class Cutting(StandIn):
        def encode(self, prompt, response):
            return super().encode(prompt, response[:8])

    assert report_of(Cutting(knows), DATA / "pairs.jsonl")["with_a_cut_response"] == 2


def test_all_of_the_time_is_told(monkeypatch):
    """Also what the judge took for items that it then could not answer, and what too long ones took to be found."""
    clock = iter(range(0, 10_000, 5))
    monkeypatch.setattr("fsrm_lite.measure.evaluation.perf_counter", lambda: next(clock))

    class Short(StandIn):
        def has_room(self, prompt, *responses):
            return "colour" not in prompt

    report = report_of(Short(knows), DATA / "pairs.jsonl", batch=2)
    assert report["policies"]["always_slow"]["seconds"] == pytest.approx(2 * 10)  # two batches, 5 s fast and 5 s slow
    assert report["seconds"] == pytest.approx(20)


def test_reports_are_ready_for_json_and_have_intervals():
    report = json.loads(json.dumps(report_of(StandIn(knows, noise=20.0), DATA / "rm_bench.json")))
    score = report["policies"]["always_fast"]["metrics"]["score"]
    assert score["low"] <= score["value"] <= score["high"]
    assert report["subsets"] == {"chat": 2, "math": 2, "code": 2, "safety-refuse": 2, "safety-response": 2}
    assert set(report["policies"]["gated"]["subsets"]) == set(report["subsets"])


def test_every_format_has_a_metric():
    assert set(METRICS) == set(FORMATS) | {"best-of-n", "singles"}  # the latter two are of score files


@pytest.mark.parametrize("options", [{"batch": 0}, {"limit": 0}])
def test_options_out_of_range(options):
    with pytest.raises(InputError, match="expected at least 1"):
        EvalOptions(**options)


# Resume


class Interrupted(Exception):
    """Stands for a power cut."""


def run(rm, output, *, resume=False, stop_after=None, **options):
    seen = []

    def progress(record):
        seen.append(record.id)
        if stop_after is not None and len(seen) >= stop_after:
            raise Interrupted

    benchmark = load_benchmark(DATA / "rm_bench.json")
    return evaluate(
        rm, benchmark, EvalOptions(batch=2, **options), output=output, resume=resume, progress=progress
    ), seen


def content(records):
    return [(r.id, r.logits, r.slow) for r in records]


def test_resume_neither_loses_nor_repeats_an_item(tmp_path):
    whole, _ = run(StandIn(knows), tmp_path / "whole.jsonl")
    output = tmp_path / "cut.jsonl"
    with pytest.raises(Interrupted):
        run(StandIn(knows), output, stop_after=5)
    assert len(output.read_text().splitlines()) == 6
    rm = StandIn(knows)
    records, seen = run(rm, output, resume=True)
    assert content(records) == content(whole)
    assert len(seen) == 10
    assert len({json.loads(line)["id"] for line in output.read_text().splitlines()}) == 10
    assert sum(c[2] for c in rm.calls if c[1] == "never") == 4 * 6


def test_resume_survives_a_half_written_last_line(tmp_path):
    output = tmp_path / "cut.jsonl"
    whole, _ = run(StandIn(knows), output)
    raw = output.read_bytes()
    for cut in (1, 30, 200):
        output.write_bytes(raw[:-cut])
        records, _ = run(StandIn(knows), output, resume=True)
        assert content(records) == content(whole)
        assert len(output.read_text().splitlines()) == 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"precious": 1}', "line 1: not a row; this is not a results file to go on with"),
        ("notes", "line 1: not a row; this is not a results file to go on with"),
        ('{"prompt": "a"}\n{"prompt": "b"}', "line 1 is not a result of this command .*; start a new file"),
    ],
)
def test_resume_leaves_a_file_that_is_not_its_own_alone(tmp_path, text, message):
    output = tmp_path / "precious.json"
    output.write_text(text)
    with pytest.raises(DataFormatError, match=message):
        run(StandIn(knows), output, resume=True)
    assert output.read_text() == text


@pytest.mark.parametrize(
    "change",
    [
        {"logits": None},
        {"logits": [1.0]},
        {"logits": ["a", "b"]},
        {"logits": [math.nan, 0.0]},
        {"right": [7]},
        {"right": None},
        {"id": {}},
        {"escalated": []},
    ],
)
def test_a_damaged_line_is_named(tmp_path, change):
    output = tmp_path / "out.jsonl"
    run(StandIn(knows), output)
    first, *rest = output.read_text().splitlines(keepends=True)
    output.write_text(json.dumps(json.loads(first) | change) + "\n" + "".join(rest))
    with pytest.raises(DataFormatError, match="line 1 is not a result of this command"):
        run(StandIn(knows), output, resume=True)


def test_resume_refuses_results_of_other_labels(tmp_path):
    output = tmp_path / "out.jsonl"
    run(StandIn(knows), output)
    first, *rest = output.read_text().splitlines(keepends=True)
    row = json.loads(first)
    output.write_text(json.dumps(row | {"right": [1 - row["right"][0]]}) + "\n" + "".join(rest))
    with pytest.raises(DataFormatError, match="other texts or labels"):
        run(StandIn(knows), output, resume=True)


def test_resume_of_a_finished_or_empty_file(tmp_path):
    output = tmp_path / "out.jsonl"
    output.write_text("")
    run(StandIn(knows), output, resume=True)
    rm = StandIn(knows)
    records, seen = run(rm, output, resume=True)
    assert (len(records), len(seen), rm.calls) == (10, 10, [])


def test_results_are_never_overwritten(tmp_path):
    run(StandIn(knows), tmp_path / "out.jsonl")
    with pytest.raises(InputError, match="pass --resume"):
        run(StandIn(knows), tmp_path / "out.jsonl")


def test_results_of_other_runs_or_data_are_refused(tmp_path):
    output = tmp_path / "out.jsonl"
    run(StandIn(knows), output)
    with pytest.raises(DataFormatError, match="line 1 stems from another model or other options"):
        run(StandIn(knows), output, resume=True, seed=3)
    lines = output.read_text().splitlines()
    output.write_text("\n".join([*lines, lines[0], ""]))
    with pytest.raises(DataFormatError, match="line 11 repeats"):
        run(StandIn(knows), output, resume=True)
    output.write_text(lines[0].replace('"key": "', '"key": "0') + "\n")
    with pytest.raises(DataFormatError, match="other texts"):
        run(StandIn(knows), output, resume=True)
    output.write_text("{}\n" + lines[0] + "\n")
    with pytest.raises(DataFormatError, match="line 1 is not a result"):
        run(StandIn(knows), output, resume=True)


def test_records_survive_a_round_trip():
    records, _ = run(StandIn(knows), None)
    assert [Record.from_json(r.to_json()) for r in records] == records
    assert is_right(records[0], pairwise=False)


# Published data


@needs_data
@pytest.mark.parametrize(
    ("folder", "figure", "share", "count"),
    [
        ("llmbar", "score", 113 / 419, 419),
        ("pandalm", "unanimous", 533 / 794, 999),
        ("gsm8k", "score", 1326 / 2429, 2429),
    ],
)
def test_the_longer_answer_wins_as_often_as_counted_by_hand(folder, figure, share, count):
    benchmark = load_benchmark(SHARED / folder)
    rm = StandIn(lambda prompt, response: float(len(response)))
    records = evaluate(rm, benchmark, EvalOptions(judge="never", batch=512))
    report = summarize(records, benchmark.format, resamples=2)
    longer = report["baselines"]["longer"]["metrics"][figure]["value"]
    assert longer == pytest.approx(share, abs=1e-12)
    assert report["items"] == count
    # a model that scores by length decides the same, except on empty responses, which it never sees
    assert report["policies"]["always_fast"]["metrics"][figure]["value"] == pytest.approx(longer, abs=1e-12)


# Drawing some of the items


def test_a_limit_draws_from_every_subset_in_proportion():
    examples = [Example(str(i), "p", ("a", "b"), (0,), "big" if i < 80 else "small", str(i)) for i in range(100)]
    drawn = sample(examples, 10)
    assert [x.subset for x in drawn] == ["big"] * 8 + ["small"] * 2
    assert [int(x.id) for x in drawn] == sorted(int(x.id) for x in drawn)
    assert drawn == sample(examples, 10)
    assert drawn != sample(examples, 10, seed=1)
    assert sample(examples, 100) == sample(examples, None) == examples


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6), limit=st.integers(1, 200), seed=st.integers(0, 9))
def test_a_limit_is_kept_exactly(sizes, limit, seed):
    examples = [
        Example(f"{s}-{i}", "p", ("a", "b"), (0,), str(s), f"{i // 2}") for s, n in enumerate(sizes) for i in range(n)
    ]
    drawn = sample(examples, limit, seed)
    assert len(drawn) == min(limit, len(examples))
    for s, n in enumerate(sizes):
        assert abs(sum(x.subset == str(s) for x in drawn) - min(limit, len(examples)) * n / len(examples)) < 1


def test_a_limit_keeps_the_items_of_a_prompt_together():
    examples = [Example(str(i), "p", ("a", "b"), (0,), "Ties", str(i // 2)) for i in range(40)]
    groups = [x.group for x in sample(examples, 10)]
    assert all(groups.count(g) == 2 for g in groups)


# Warnings


def warned(rm, path=DATA / "pairs.jsonl", **options):
    return " ".join(report_of(rm, path, **options)["warnings"])


def test_a_low_label_mass_is_told():
    class Vague(StandIn):
        def read(self, prompt, response):
            return dataclasses.replace(super().read(prompt, response), label_mass=0.01)

    assert "the label mass is low: below 0.5 on 100 % of the responses (0.01 at the median)" in warned(Vague(knows))
    assert "label mass" not in warned(StandIn(knows))


def test_a_model_that_is_worse_than_a_coin_is_told_so():
    text = warned(StandIn(lambda p, r: -knows(p, r)))
    assert "always fast is worse than a coin (0.0 % against 50.0 %)" in text
    assert "always slow is worse than a coin" in text


def test_a_model_that_may_be_no_better_than_a_coin_is_told_so(tmp_path):
    rows = [{"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"poor {i}"} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))

    def guess(prompt, response):  # right on 21 of 40
        return knows(prompt, response) * (1 if int(response.split()[-1]) < 21 else -1)

    text = warned(StandIn(guess), tmp_path / "rows.jsonl", judge="never")
    assert "always fast cannot be told from a coin: 50.0 %" in text
    assert warned(StandIn(knows), tmp_path / "rows.jsonl") == ""


def test_a_judge_that_answers_few_items_is_told():
    class Short(StandIn):
        def has_room(self, prompt, *responses):
            return False

    text = warned(Short(knows))
    assert "the judge answered 0 of the 4 items it was asked about (4 were too long for it)" in text


def test_a_report_has_no_nan():
    report = report_of(StandIn(knows), DATA / "rewardbench.jsonl", limit=1)
    json.dumps(report, allow_nan=False)
    empty = without_nan({"a": math.nan, "b": [math.inf, 1.0, (2.0, -math.inf)], "c": "NaN"})
    assert empty == {"a": None, "b": [None, 1.0, [2.0, None]], "c": "NaN"}


def test_a_report_says_what_was_measured():
    benchmark = load_benchmark(DATA / "pairs.jsonl")
    records = evaluate(StandIn(knows), benchmark, EvalOptions(judge="never"))
    report = summarize(records, benchmark.format, resamples=2, run={"bundle": "x"}, not_read=["other.json: why"])
    assert report["run"] == {"bundle": "x"}
    assert report["files_not_read"] == ["other.json: why"]


def test_results_that_are_gone_end_the_run(tmp_path):
    """Else a new file would begin in the middle, and the run would end well."""
    out = tmp_path / "results.jsonl"
    with pytest.raises(InputError, match=r"results\.jsonl cannot be written: No such file"):
        evaluate(
            StandIn(knows),
            load_benchmark(DATA / "pairs.jsonl"),
            EvalOptions(batch=1),
            output=out,
            progress=lambda record: out.unlink(missing_ok=True),
        )
    assert not out.exists()


def test_a_run_that_ended_before_its_first_item_leaves_nothing_to_resume(tmp_path):
    class Short(StandIn):
        def encode(self, prompt, response):
            raise ContextOverflowError("too long")

    out, benchmark = tmp_path / "results.jsonl", load_benchmark(DATA / "pairs.jsonl")
    with pytest.raises(ContextOverflowError):
        evaluate(Short(knows), benchmark, EvalOptions(), output=out)
    assert len(evaluate(StandIn(knows), benchmark, EvalOptions(), output=out)) == len(benchmark.examples)
