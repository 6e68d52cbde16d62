import gzip
import json
import random

import pytest
from helpers import DATA, SHARED
from helpers.hostile import changed_anywhere

from fsrm_lite.errors import DataFormatError, FsrmError
from fsrm_lite.measure.benchmark_formats import FORMATS, PAIRS, load_benchmark
from fsrm_lite.measure.data_files import as_list, read_rows
from fsrm_lite.measure.labelled_lists import read_lists
from fsrm_lite.measure.labelled_rows import read_labelled

FILES = {
    "pairs": "pairs.jsonl",
    "rewardbench": "rewardbench.jsonl",
    "rewardbench2": "rewardbench2.jsonl",
    "rm-bench": "rm_bench.json",
    "judgebench": "judgebench.jsonl",
    "rmb": "rmb.json",
    "rmb-bon": "rmb_bon.json",
    "llmbar": "llmbar.json",
    "pandalm": "pandalm.json",
    "gsm8k-solutions": "gsm8k_solutions.jsonl.gz",
    "ppe-preference": "ppe_preference.jsonl",
    "ppe-correctness": "ppe_gpqa.jsonl",
}
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the public sample data are not here")


def is_good(text):
    return "good" in text or text in ("It is 5.", "Blue", "Hi!", "Paris")


@pytest.mark.parametrize("name", [name for name in FORMATS if not name.endswith(PAIRS)])
def test_every_format_is_recognised_and_its_right_answers_are_right(name):
    benchmark = load_benchmark(DATA / FILES[name])
    assert benchmark.format.name == name
    assert len({x.id for x in benchmark.examples}) == len(benchmark.examples)
    for example in benchmark.examples:
        if example.right:
            assert [is_good(r) for r in example.responses] == [
                i in example.right for i in range(len(example.responses))
            ], example.id
    assert load_benchmark(DATA / FILES[name], name) == benchmark


@pytest.mark.parametrize("name", [name for name in FORMATS if name.endswith(PAIRS)])
def test_single_responses_become_pairs_of_a_right_and_a_wrong_one(name):
    whole = load_benchmark(DATA / FILES[name.removesuffix(PAIRS)])
    pairs = load_benchmark(DATA / FILES[name.removesuffix(PAIRS)], name)
    assert (pairs.format.name, pairs.format.pairwise) == (name, True)
    assert len({x.id for x in pairs.examples}) == len(pairs.examples)
    assert all([is_good(r) for r in x.responses] == [i in x.right for i in (0, 1)] for x in pairs.examples)
    able = [x for x in whole.examples if x.subset != "Ties"]
    assert len(pairs.examples) == sum(len(x.right) * (len(x.responses) - len(x.right)) for x in able)
    assert {x.group for x in pairs.examples} == {x.group for x in able}


def test_csv_reads_like_jsonl():
    assert load_benchmark(DATA / "rewardbench.csv").examples == load_benchmark(DATA / "rewardbench.jsonl").examples


def test_lists_in_csv_cells_are_read(tmp_path):
    path = tmp_path / "rb2.csv"
    path.write_text('id,prompt,chosen,rejected,num_correct,subset\nx,p,"[""good""]","[\'bad\', \'worse\']",1,Math\n')
    example = load_benchmark(path).examples[0]
    assert example.responses == ("good", "bad", "worse")
    assert example.right == (0,)
    with pytest.raises(DataFormatError, match="expected a list"):
        as_list("not one", "here")


def test_gzip_and_a_folder_of_files(tmp_path):
    for name in ("Natural", "Neighbor"):
        folder = tmp_path / name
        folder.mkdir()
        rows = [{**row, "input": f"{name}: {row['input']}"} for row in json.loads((DATA / "llmbar.json").read_text())]
        (folder / "dataset.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    examples = load_benchmark(tmp_path).examples
    assert [x.subset for x in examples] == ["Natural"] * 3 + ["Neighbor"] * 3


def test_right_answers_do_not_always_stand_first(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": "p", "chosen": f"good {i}", "rejected": f"bad {i}"}) + "\n" for i in range(400))
    )
    places = [x.right[0] for x in load_benchmark(path).examples]
    assert 150 < sum(places) < 250
    assert places == [x.right[0] for x in load_benchmark(path).examples]


def test_conversations_keep_their_messages():
    example = load_benchmark(DATA / "pairs.jsonl").examples[3]
    assert example.prompt == [{"role": "user", "content": "Capital of France?"}]
    assert set(example.responses) == {"Paris", "Lyon, of course"}


def test_gsm8k_pairs_right_with_wrong_and_strips_the_calculator():
    examples = load_benchmark(DATA / "gsm8k_solutions.jsonl.gz").examples
    assert len(examples) == 2  # one right with two wrong ones; the other question has no wrong one
    assert not any("<<" in r for x in examples for r in x.responses)
    assert len({x.group for x in examples}) == 1


def test_pandalm_labels_ties_and_odd_values():
    first, boolean, tie, empty = load_benchmark(DATA / "pandalm.json").examples
    assert (first.right, first.subset, first.prompt) == ((0,), "unanimous", "Rewrite.\n\nHello there")
    assert (boolean.responses[0], boolean.right, boolean.subset, boolean.prompt) == (
        "True",
        (1,),
        "majority",
        "Rewrite.",
    )
    assert (tie.right, tie.subset) == ((), "tie")
    assert (empty.responses[0], empty.right) == ("", (1,))


def test_judgebench_categories():
    assert [x.subset for x in load_benchmark(DATA / "judgebench.jsonl").examples] == [
        "Knowledge, m",
        "Mathematics, m",
        "Coding, m",
        "Reasoning, m",
    ]


def test_rmb_has_its_scenarios_and_plain_messages():
    pairs, lists = (load_benchmark(DATA / name).examples for name in ("rmb.json", "rmb_bon.json"))
    assert pairs[1].subset == lists[1].subset == "Helpfulness/Code/Data Management"
    assert pairs[0].prompt == lists[0].prompt == [{"role": "user", "content": "Question 0?"}]
    assert [len(x.responses) for x in lists[:3]] == [3, 4, 5]


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("x.jsonl", '{"foo": 1}\n', "no known format has the columns foo"),
        ("x.jsonl", '{"prompt": "p", "chosen": "a", "rejected": "b"}\n{"prompt":\n', r"x\.jsonl line 2: invalid JSON"),
        ("x.jsonl", '{"prompt": "p", "chosen": "a", "rejected": "b"}\n[1]\n', r"x\.jsonl line 2: got a list"),
        (
            "x.jsonl",
            '{"prompt": "p", "chosen": "a", "rejected": "b"}\n{"prompt": "p"}\n',
            "line 2: not in the format 'pairs': has no 'response_A'",
        ),
        ("x.json", "[]", "holds no rows"),
        ("x.jsonl", "", "holds no rows"),
        ("x.csv", "prompt,chosen,rejected\np,a\n", "more or fewer cells"),
        ("x.csv", 'prompt,chosen,rejected\np,"a,b\n', "malformed CSV"),
        ("x.parquet", "PAR1", "cannot read"),
        ("x.arrow", "ARROW", "cannot read"),
        ("x.xlsx", "PK", "unknown type"),
        ("x.jsonl", '{"prompt": "p", "response_a": "a", "response_b": "b", "label": 3}', "'label' is 3"),
        ("x.json", '[{"input": "p", "output_1": "a", "output_2": "b", "label": 0}]', "'label' is 0, expected 1 or 2"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path, name, text, match):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataFormatError, match=match):
        load_benchmark(tmp_path / name)


def test_unknown_names_and_places(tmp_path):
    with pytest.raises(DataFormatError, match="format 'alpaca' is unknown"):
        load_benchmark(DATA / "pairs.jsonl", "alpaca")
    with pytest.raises(DataFormatError, match="there is no file"):
        load_benchmark(tmp_path / "nowhere.json")
    with pytest.raises(DataFormatError, match="has no data file"):
        load_benchmark(tmp_path)
    (tmp_path / "broken.json.gz").write_bytes(b"\x1f\x8b not gzip")
    with pytest.raises(DataFormatError, match="cannot read"):
        read_rows(tmp_path / "broken.json.gz")


@needs_data
@pytest.mark.parametrize(
    ("folder", "name", "count"),
    [("llmbar", "llmbar", 419), ("pandalm", "pandalm", 999), ("gsm8k", "gsm8k-solutions", 2429)],
)
def test_published_files_have_their_published_sizes(folder, name, count):
    benchmark = load_benchmark(SHARED / folder)
    assert benchmark.format.name == name
    assert len(benchmark.examples) == count


@needs_data
def test_published_subsets():
    sizes = {}
    for x in load_benchmark(SHARED / "llmbar").examples:
        sizes[x.subset] = sizes.get(x.subset, 0) + 1
    assert sizes == {"Natural": 100, "Neighbor": 134, "GPTInst": 92, "GPTOut": 47, "Manual": 46}
    kinds = [x.subset for x in load_benchmark(SHARED / "pandalm").examples]
    assert (kinds.count("unanimous"), kinds.count("tie")) == (794, 105)
    assert len({x.group for x in load_benchmark(SHARED / "gsm8k").examples}) == 731


@pytest.mark.parametrize("name", FILES)
def test_rows_with_any_part_exchanged_are_read_or_refused_by_our_errors(tmp_path, name):
    rows = list(changed_anywhere(read_rows(DATA / FILES[name])[0].data))
    path, refused = tmp_path / "rows.jsonl", 0
    for row in random.Random(0).sample(rows, min(200, len(rows))):
        path.write_text(json.dumps(row).replace("Infinity", "1e999") + "\n")
        for read in (load_benchmark, read_labelled, read_lists):
            try:
                read(path)
            except FsrmError:
                refused += 1
    assert refused > 0
