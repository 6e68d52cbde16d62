"""The commands a newcomer types: JSONL in and out, single calls, errors in one line, broken-off runs."""

import itertools
import json
import os
import shutil
from dataclasses import replace

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.attack import bulk
from fsrm_lite import Comparison, FastSlowRM
from fsrm_lite.bundle.files import write_manifest
from fsrm_lite.cli import COMMANDS, main
from fsrm_lite.errors import InputError
from fsrm_lite.files import sole_writer
from fsrm_lite.gate import GateSpec
from fsrm_lite.models.data import pair_row
from fsrm_lite.results import journal_of

QUESTION, RIGHT, WRONG = "What is 2 + 3?", "The answer is 5.", "The answer is 41."
FAST = ("--judge", "never", "--threads", "1")


def run(*arguments, text=None):
    return CliRunner().invoke(main, [str(a) for a in arguments], input=text, catch_exceptions=False)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.jsonl"
    items = [{"prompt": QUESTION, "response": r, "id": i} for i, r in enumerate((RIGHT, WRONG, "5"))]
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_score_keeps_order_and_extra_fields(source, tmp_path):
    out = tmp_path / "out.jsonl"
    assert run("score", source, "-o", out, *FAST).exit_code == 0
    assert [r["id"] for r in rows(out)] == [0, 1, 2]
    wanted = (
        "score logit intuition_confidence distribution_confidence label_mass "
        "route escalated rationale tokens_read tokens_generated"
    )
    assert set(wanted.split()) <= set(rows(out)[0])
    assert rows(out)[0]["score"] > rows(out)[1]["score"]


def test_standard_input_and_output(source):
    result = run("score", "-", *FAST, text=source.read_text())
    assert result.exit_code == 0
    assert len([json.loads(line) for line in result.stdout.splitlines()]) == 3


def test_compare_has_no_scores_where_the_model_reads_pairs(tmp_path, monkeypatch):
    read = Comparison(1, 0.3, 0.4, 0.2, orders_agree=True, logit=-0.8, label_mass=0.9)
    monkeypatch.setattr(FastSlowRM, "compare_many", lambda self, items: [read for _ in items])
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps({"prompt": QUESTION, "chosen": RIGHT, "rejected": WRONG}) + "\n")
    (row,) = (json.loads(line) for line in run("compare", path, *FAST).stdout.splitlines())
    assert (row["winner"], row["p_first"], row["scores"], row["votes"]) == (1, 0.3, None, [0, 0])


def test_compare_reads_both_kinds_of_rows(tmp_path, pairs):
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    same = [pair_row(p) for p in pairs[:3]]
    named = [{"prompt": r["prompt"], "response_a": r["chosen"], "response_b": r["rejected"]} for r in same]
    path.write_text("".join(json.dumps(r) + "\n" for r in [*same, *named]))
    assert run("compare", path, "-o", out, *FAST).exit_code == 0
    written = rows(out)
    assert [r["winner"] for r in written[:3]] == [r["winner"] for r in written[3:]]
    assert written[0]["family"] == pairs[0].problem.family


def test_rows_with_the_new_fields_can_be_skipped_or_prefixed(source, tmp_path):
    out = tmp_path / "out.jsonl"
    first, *others = source.read_text().splitlines()
    source.write_text("\n".join([json.dumps(json.loads(first) | {"logit": 1, "score": 1}), *others]) + "\n")
    result = run("score", source, "-o", out, "--on-error", "skip", *FAST)
    assert result.exit_code == 1
    assert "line 1: the row has logit, score already" in result.stderr
    assert [r["id"] for r in rows(out)] == [1, 2]
    assert run("score", source, "-o", out, "--overwrite", "--prefix", "fast_", *FAST).exit_code == 0
    assert rows(out)[0]["score"] == 1 > rows(out)[0]["fast_score"] > 0


@pytest.fixture
def candidates(tmp_path, pairs):
    """A question, six responses to it, and a file with them as its one row."""
    question = pairs[0].problem.question
    responses = [r.text for p in pairs[:3] for r in (p.chosen, p.rejected)]
    path = tmp_path / "candidates.jsonl"
    path.write_text(json.dumps({"prompt": question, "responses": responses}) + "\n")
    return question, responses, path


@pytest.mark.parametrize("judge", ["never", "auto", "always"])
def test_rank_means_the_same_in_the_shell_and_in_python(rm, tmp_path, candidates, judge):
    question, responses, path = candidates
    out = tmp_path / "out.jsonl"
    assert run("rank", path, "-o", out, "--threads", 1, "--judge", judge).exit_code == 0
    ranked = rm.rank(question, responses, judge=judge)
    assert rows(out)[0]["ranking"] == [entry["corpus_id"] for entry in ranked]
    assert [rows(out)[0]["scores"][entry["corpus_id"]] for entry in ranked] == [entry["score"] for entry in ranked]


def test_best_of_n_means_the_same_in_the_shell_and_in_python(rm, tmp_path, candidates):
    question, responses, path = candidates
    out = tmp_path / "out.jsonl"
    for options, expected in (
        (("--strategy", "fast"), rm.best_of_n(question, responses, strategy="fast")),
        ((), rm.best_of_n(question, responses)),
        (("--judge", "always"), rm.best_of_n(question, responses, judge="always")),
    ):
        assert run("best-of-n", path, "-o", out, "--overwrite", "--threads", 1, *options).exit_code == 0
        assert rows(out)[0]["ranking"] == list(expected.ranking)


def test_a_missing_judge_is_one_line_on_standard_error(monkeypatch):
    from fsrm_lite.errors import JudgeUnavailableError
    from fsrm_lite.runtimes.llama import engine
    from fsrm_lite.slow import worker

    def missing(*_):
        raise JudgeUnavailableError("llama-cpp-python is not installed;\nrun: pip install 'fsrm-lite[judge]'")

    for module in (engine, worker):
        monkeypatch.setattr(module, "load_llama", missing)
    monkeypatch.setattr(
        engine, "why_not", lambda: "llama-cpp-python is not installed;\nrun: pip install 'fsrm-lite[judge]'"
    )
    arguments = ["--prompt", QUESTION, "--first", "5", "--second", "6", "--json", "--judge-engine", "llama.cpp"]
    result = run("compare", *arguments)
    assert json.loads(result.stdout)["escalated"]
    assert result.stderr.startswith("Warning: the gate asked for slow thinking")
    assert result.stderr.count("\n") == 1
    assert result.stderr.rstrip().endswith("run: pip install 'fsrm-lite[judge]'")


def test_best_of_n_returns_all_positions_and_takes_empty_responses(tmp_path):
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    path.write_text(json.dumps({"prompt": QUESTION, "responses": [WRONG, "", RIGHT]}) + "\n")
    assert run("best-of-n", path, "-o", out, "--threads", 1).exit_code == 0
    assert rows(out)[0]["best"] == 2
    assert rows(out)[0]["ranking"][-1] == 1


def test_single_call_as_json_and_as_text():
    one = run("score", "--prompt", QUESTION, "--response", RIGHT, "--json", *FAST)
    assert 0 < json.loads(one.stdout)["score"] < 1
    assert "score: 0." in run("score", "--prompt", QUESTION, "--response", RIGHT, *FAST).stdout
    two = run("compare", "--prompt", QUESTION, "--first", RIGHT, "--second", WRONG, "--json", *FAST)
    assert json.loads(two.stdout)["winner"] == 0


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("{oops", "line 2: invalid JSON"),
        ("[1]", "line 2: invalid JSON (a JSON list, expected an object)"),
        ("null", "line 2: invalid JSON (null, expected an object)"),
        ('{"prompt": "q", "response": "x", "note": NaN}', "line 2: invalid JSON"),
        ('{"prompt": "q", "response": "x", "note": "\\ud800"}', "line 2: invalid JSON"),
        ("[" * 100_000, "line 2: invalid JSON"),
        ('{"prompt": "q"}', "line 2: missing field 'response'"),
        ('{"prompt": "q", "response": ""}', "line 2: the response is empty"),
        ('{"prompt": "q", "response": 3}', "line 2: the response is of type int"),
        ('{"prompt": "q", "response": "x", "score": 1}', "line 2: the row has score already; pass --prefix"),
        (json.dumps({"prompt": "q", "response": "1 " * 600}), "line 2: the rendered prompt has"),
    ],
)
def test_a_bad_row_is_named_by_its_line(source, tmp_path, line, text):
    source.write_text(source.read_text().splitlines()[0] + "\n" + line + "\n")
    result = run("score", source, "-o", tmp_path / "out.jsonl", *FAST)
    assert result.exit_code == 2
    assert text in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_bad_rows_can_be_skipped_and_are_listed(source, tmp_path):
    out = tmp_path / "out.jsonl"
    good = source.read_text().splitlines()
    source.write_text("\n".join([good[0], "{oops", "", good[1], '{"prompt": "q"}', good[2]]) + "\n")
    result = run("score", source, "-o", out, "--on-error", "skip", *FAST)
    assert result.exit_code == 1
    assert [r["id"] for r in rows(out)] == [0, 1, 2]
    assert "2 rows skipped" in result.stderr
    assert "line 2: invalid JSON" in result.stderr
    assert "line 5: missing field 'response'" in result.stderr


def test_skipped_rows_are_listed_in_the_order_of_the_file(tmp_path):
    path = tmp_path / "in.jsonl"
    # The first row's fault is found only when it is answered, the second's already when it is read.
    path.write_text('{"prompt": "", "responses": [""]}\n{"prompt": "q"}\n')
    result = run("best-of-n", path, "--on-error", "skip", *FAST)
    assert result.stderr.index("line 1: the prompt is empty") < result.stderr.index("line 2: field 'responses'")


def test_truncate_says_what_it_cut(tmp_path):
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    long = "2 + 3 = 5. " * 200
    path.write_text(json.dumps({"prompt": QUESTION, "response": long}) + "\n")
    result = run("score", path, "-o", out, "--truncate", *FAST)
    assert result.exit_code == 0
    kept, given = rows(out)[0]["truncated"]["0"]
    assert given == len(long) > kept
    assert "1 rows had responses cut" in result.stderr


def test_an_existing_output_is_not_lost(source, tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text('{"mine": 1}\n')
    refused = run("score", source, "-o", out, *FAST)
    assert refused.exit_code == 2
    assert "--resume" in refused.stderr
    assert rows(out) == [{"mine": 1}]
    assert run("score", source, "-o", out, "--overwrite", *FAST).exit_code == 0
    assert len(rows(out)) == 3


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    """An input with bad rows among the good ones, and the output and journal of a run that was not interrupted."""
    folder = tmp_path_factory.mktemp("long")
    lines = [
        json.dumps({"prompt": f"What is {i // 3} + 3?", "response": f"The answer is {i}.", "id": i}) for i in range(26)
    ]
    lines[4], lines[11], lines[25] = "{oops", json.dumps({"prompt": "q", "response": "5", "tokens_read": 1}), "{"
    source, out = folder / "in.jsonl", folder / "out.jsonl"
    source.write_text("\n".join(lines) + "\n")
    result = run("score", source, "-o", out, *LONG)
    assert result.exit_code == 1
    return source, out.read_bytes(), journal_of(out).read_bytes(), result.stderr


LONG = ("--on-error", "skip", "--batch-size", "5", *FAST)


@given(
    output=st.integers(0, 10_000),
    journal=st.integers(0, 10_000),
    tail=st.sampled_from([b"", b"\0" * 70, b'{"half": ', b'{"half": \0\0']),
    behind=st.sampled_from([b"", b"\0" * 40, b'{"line": 3, "inp']),
)
@settings(max_examples=25, deadline=None)
def test_wherever_a_run_is_cut_the_rows_become_the_same_bytes(long_run, output, journal, tail, behind):
    source, whole, notes, said = long_run
    head = notes.index(b"\n") + 1  # the first line is on the disk before the first row is
    kept = notes[: max(head, journal % (len(notes) + 1))]
    ends = [json.loads(line)["bytes"] for line in kept.splitlines(keepends=True)[1:] if line.endswith(b"\n")]
    written = max(ends[-1] if ends else 0, output % (len(whole) + 1))  # and a batch is before its line in the journal
    out = source.with_name("cut.jsonl")
    out.write_bytes(whole[:written] + tail)
    journal_of(out).write_bytes(kept + behind)
    result = run("score", source, "-o", out, "--resume" if written or tail else "--overwrite", *LONG)
    assert result.exit_code == 1, result.stderr
    assert out.read_bytes() == whole
    assert result.stderr == said
    assert journal_of(out).read_bytes() == notes
    assert sorted(p.name for p in source.parent.iterdir()) == [
        ".cut.jsonl.run",
        ".out.jsonl.run",
        "cut.jsonl",
        "in.jsonl",
        "out.jsonl",
    ]


def test_zero_bytes_within_the_rows_of_a_batch_are_written_again(long_run):
    source, whole, notes, _ = long_run
    out = source.with_name("cut.jsonl")
    out.write_bytes(whole[:-200] + b"\0" * 200)
    journal_of(out).write_bytes(notes)
    assert run("score", source, "-o", out, "--resume", *LONG).exit_code == 1
    assert out.read_bytes() == whole


def test_a_judged_run_that_was_cut_becomes_the_same_bytes(tmp_path, pairs):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(pair_row(pair)) + "\n" for pair in pairs[:6]))
    options = ("--judge", "always", "--batch-size", "2", "--threads", "1", "--thinking-tokens", "40")
    assert run("compare", source, "-o", out, *options).exit_code == 0
    whole = out.read_bytes()
    out.write_bytes(whole[: len(whole) // 2])
    assert run("compare", source, "-o", out, "--resume", *options).exit_code == 0
    assert out.read_bytes() == whole


def test_an_input_that_has_grown_is_answered_as_if_it_had_always_been_that_long(source, tmp_path):
    out, fresh = tmp_path / "out.jsonl", tmp_path / "fresh.jsonl"
    options = ("--batch-size", 2, *FAST)
    assert run("score", source, "-o", out, *options).exit_code == 0
    before = out.read_bytes()
    assert run("score", source, "-o", out, "--resume", *options).exit_code == 0
    assert out.read_bytes() == before
    with source.open("a") as file:
        file.write("".join(json.dumps({"prompt": QUESTION, "response": r}) + "\n" for r in ("6", "7", "five")))
    assert run("score", source, "-o", out, "--resume", *options).exit_code == 0
    assert run("score", source, "-o", fresh, *options).exit_code == 0
    assert out.read_bytes() == fresh.read_bytes()


def test_a_row_that_was_mended_is_answered_as_if_it_had_never_been_bad(source, tmp_path):
    out, fresh = tmp_path / "out.jsonl", tmp_path / "fresh.jsonl"
    good = source.read_text()
    source.write_text(good.splitlines()[0] + "\n{oops\n")
    assert run("score", source, "-o", out, *FAST).exit_code == 2
    source.write_text(good)
    assert run("score", source, "-o", out, "--resume", *FAST).exit_code == 0
    assert run("score", source, "-o", fresh, *FAST).exit_code == 0
    assert out.read_bytes() == fresh.read_bytes()


def test_rows_before_a_bad_one_are_kept(source, tmp_path):
    out = tmp_path / "out.jsonl"
    source.write_text(source.read_text() + "{oops\n")
    assert run("score", source, "-o", out, *FAST).exit_code == 2
    assert [r["id"] for r in rows(out)] == [0, 1, 2]


def test_of_two_bad_rows_the_first_is_named_and_rows_before_it_are_kept(source, tmp_path):
    out = tmp_path / "out.jsonl"
    lines = source.read_text().splitlines()
    taken = json.dumps(json.loads(lines[1]) | {"score": 1})
    source.write_text("\n".join([lines[0], taken, lines[2], "{oops"]) + "\n")
    result = run("score", source, "-o", out, *FAST)
    assert result.exit_code == 2
    assert "line 2: the row has score already" in result.stderr
    assert [r["id"] for r in rows(out)] == [0]


def test_the_input_is_never_the_output(source):
    before = source.read_text()
    for option in ("--overwrite", "--resume"):
        result = run("score", source, "-o", source, option, *FAST)
        assert result.exit_code == 2
        assert "is the input itself" in result.stderr
    assert source.read_text() == before


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines[::-1],
        lambda lines: [json.dumps({"prompt": "new", "response": "row"}) + "\n", *lines],
        lambda lines: [lines[0], "\n", *lines[1:]],
        lambda lines: lines[:2],
        lambda lines: [lines[0].replace("answer", "reply"), *lines[1:]],
    ],
)
def test_resuming_with_another_input_is_refused(source, tmp_path, change):
    out = tmp_path / "out.jsonl"
    run("score", source, "-o", out, *FAST)
    written = out.read_bytes()
    source.write_text("".join(change(source.read_text().splitlines(keepends=True))))
    result = run("score", source, "-o", out, "--resume", *FAST)
    assert result.exit_code == 2
    assert "the first 3 lines of the input are not those that" in result.stderr
    assert out.read_bytes() == written


@pytest.mark.parametrize(
    ("command", "changed", "said"),
    [
        ("compare", (), "the command was 'score' and is 'compare'"),
        ("rank", (), "the command was 'score' and is 'rank'"),
        ("best-of-n", (), "the command was 'score' and is 'best-of-n'"),
        ("score", ("--prefix", "p_"), "--prefix was '' and is 'p_'"),
        ("score", ("--seed", "3"), "--seed was 0 and is 3"),
        ("score", ("--judge", "auto"), "--judge was 'never' and is 'auto'"),
        ("score", ("--votes", "2"), "--votes was None and is 2"),
        ("score", ("--thinking-tokens", "9"), "--thinking-tokens was None and is 9"),
        ("score", ("--temperature", "0"), "--temperature was None and is 0.0"),
        ("score", ("--threads", "2"), "--threads was 1 and is 2"),
        ("score", ("--truncate",), "--truncate was False and is True"),
        ("score", ("--batch-size", "2"), "--batch-size was 64 and is 2"),
    ],
)
def test_going_on_with_another_run_is_refused_and_says_what_changed(source, tmp_path, command, changed, said):
    out = tmp_path / "out.jsonl"
    run("score", source, "-o", out, *FAST)
    written = out.read_bytes()
    result = run(command, source, "-o", out, "--resume", *FAST, *changed)
    assert result.exit_code == 2
    assert said in result.stderr
    assert out.read_bytes() == written
    assert run("score", source, "-o", out, "--resume", *FAST).exit_code == 0
    assert out.read_bytes() == written


def test_going_on_with_another_strategy_is_refused(tmp_path):
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    path.write_text(json.dumps({"prompt": QUESTION, "responses": [RIGHT, WRONG]}) + "\n")
    run("best-of-n", path, "-o", out, *FAST)
    result = run("best-of-n", path, "-o", out, "--resume", "--strategy", "elo", *FAST)
    assert "--strategy was 'gated' and is 'elo'" in result.stderr


def test_going_on_with_another_model_is_refused_but_a_copy_elsewhere_is_the_same_model(source, tmp_path, rm):
    out = tmp_path / "out.jsonl"
    run("score", source, "-o", out, *FAST)
    copy = tmp_path / "copy"
    shutil.copytree(rm.bundle.root, copy)
    assert run("score", source, "-o", out, "--resume", "--model", copy, *FAST).exit_code == 0
    manifest = rm.bundle.manifest
    write_manifest(
        copy, replace(manifest, gate=GateSpec(intuition_threshold=0.4)), {r: f.path for r, f in manifest.files.items()}
    )
    result = run("score", source, "-o", out, "--resume", "--model", copy, *FAST)
    assert result.exit_code == 2
    assert "the model's gate was " in result.stderr
    assert "the model's files" not in result.stderr


def test_an_output_that_somebody_changed_is_not_gone_on_with(source, tmp_path):
    out = tmp_path / "out.jsonl"
    run("score", source, "-o", out, *FAST)
    changed = out.read_text().replace('"id": 1', '"id": 7')
    out.write_text(changed)
    result = run("score", source, "-o", out, "--resume", *FAST)
    assert result.exit_code == 2
    assert "was changed since its run wrote it" in result.stderr
    assert out.read_text() == changed


def test_an_output_without_its_journal_is_not_gone_on_with(source, tmp_path):
    out = tmp_path / "out.jsonl"
    run("score", source, "-o", out, *FAST)
    written = out.read_bytes()
    journal_of(out).unlink()
    result = run("score", source, "-o", out, "--resume", *FAST)
    assert result.exit_code == 2
    assert ".out.jsonl.run, which says how it was made, is not beside it" in result.stderr
    assert out.read_bytes() == written
    assert run("score", source, "-o", out, "--resume", "--overwrite", *FAST).exit_code == 2


def test_two_runs_cannot_write_one_output(source, tmp_path):
    out = tmp_path / "out.jsonl"
    with sole_writer(out):
        result = run("score", source, "-o", out, *FAST)
    assert result.exit_code == 2
    assert f"is being written by process {os.getpid()} on " in result.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("closed", "text"),
    [("stdin", "standard input is closed"), ("stdout", "standard output is closed; name an output with -o")],
)
def test_closed_streams_are_named(source, monkeypatch, capsys, closed, text):
    monkeypatch.setattr(f"sys.{closed}", None)
    with pytest.raises(SystemExit) as end:
        main(["score", "-" if closed == "stdin" else str(source), *FAST])
    assert end.value.code == 2
    assert capsys.readouterr().err == f"Error: {text}\n"


def test_bytes_that_are_not_text_and_a_byte_order_mark(source, tmp_path):
    out = tmp_path / "out.jsonl"
    good = source.read_bytes().splitlines(keepends=True)
    source.write_bytes(
        b"\xef\xbb\xbf" + good[0] + b'{"prompt": "caf\xe9", "response": "x"}\n' + good[1].replace(b"\n", b"\r\n")
    )
    result = run("score", source, "-o", out, "--on-error", "skip", *FAST)
    assert result.exit_code == 1
    assert "line 2: invalid JSON" in result.stderr
    assert [r["id"] for r in rows(out)] == [0, 1]


def test_a_pair_too_long_for_the_judge_alone_is_named_and_can_be_skipped(tmp_path):
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    long = "12 + 5 = 17. " * 28
    items = [
        {"prompt": QUESTION, "response_a": a, "response_b": b}
        for a, b in ((RIGHT, WRONG), (long, long + "17"), (WRONG, RIGHT))
    ]
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    always = ("--judge", "always", "--threads", "1")
    result = run("compare", path, "-o", out, "--on-error", "skip", *always)
    assert result.exit_code == 1
    assert "line 2:" in result.stderr
    assert [r["winner"] for r in rows(out)] == [0, 1]
    path.write_text(path.read_text() + "{oops\n")
    stopped = run("compare", path, "-o", out, "--overwrite", *always)
    assert stopped.exit_code == 2
    assert "line 2: the rendered prompt has 661 tokens" in stopped.stderr
    assert [r["winner"] for r in rows(out)] == [0]


def test_an_output_that_cannot_be_written_is_one_line(source):
    result = run("score", source, "-o", "/proc/nothing.jsonl", *FAST)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("notes", ["my notes", "my notes\n"])
def test_resuming_refuses_what_is_not_a_results_file(source, tmp_path, notes):
    out = tmp_path / "out.jsonl"
    out.write_text(notes)
    result = run("score", source, "-o", out, "--resume", *FAST)
    assert result.exit_code == 2
    assert out.read_text() == notes


@pytest.mark.parametrize(
    "arguments",
    [
        ("score",),
        ("score", "--prompt", "q"),
        ("score", "missing.jsonl"),
        ("score", "-", "--judge", "perhaps"),
        ("score", "-", "--model", "no/such/model"),
        ("score", "-", "--votes", "0"),
        ("score", "-", "-o", "no/such/folder/out.jsonl"),
        ("score", "-", "--votes", "many"),
        ("score", "-", "--model", ""),
        ("score", "-", "--nonsense"),
        ("inspect", "one", "--model", "two"),
        ("doctor", "one", "two"),
        ("rank", "-", "--strategy", "gated"),
        ("best-of-n", "-", "--strategy", "magic"),
        ("nonsense",),
    ],
)
def test_bad_usage_ends_with_status_two_and_one_line(arguments):
    result = run(*arguments, text="")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("Error: ")


def test_a_missing_text_is_named_as_its_option():
    result = run("compare", "--prompt", QUESTION, "--first", RIGHT, *FAST)
    assert "missing: --second (see" in result.stderr


def test_a_group_without_a_command_shows_its_help():
    for arguments in ((), ("gate",)):
        assert "Commands:" in run(*arguments).output


def test_inspect_shows_the_bundle(rm):
    shown = run("inspect", "--check").stdout
    for text in ("fsrm-tiny", "Yes=1", "pairwise_slow", "sha256", "parity", "evaluation"):
        assert text in shown
    assert json.loads(run("inspect", "--json").stdout)["name"] == rm.bundle.manifest.name


def test_control_characters_of_a_card_do_not_reach_the_terminal(rm, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(rm.bundle.root, copy)
    manifest = rm.bundle.manifest
    evil = "\x1b]0;owned\x07\x9b2J\u202egnp"
    card = {**manifest.card, "license": evil, "parity": {evil: {evil: [evil]}}}
    files = {role: entry.path for role, entry in manifest.files.items()}
    write_manifest(copy, replace(manifest, card=card, name=evil), files)
    shown = run("inspect", copy).stdout
    assert "\\x1b]0;owned" in shown
    assert all(c.isprintable() or c == "\n" for c in shown)
    noted = run("inspect", "no\x1b[2J/such").stderr
    assert all(c.isprintable() or c == "\n" for c in noted)


def test_inspect_names_a_damaged_file(rm, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(rm.bundle.root, copy)
    model = copy / rm.bundle.manifest.files["fast"].path
    model.write_bytes(model.read_bytes()[:-1])
    result = run("inspect", copy, "--check")
    assert result.exit_code == 2
    assert "bytes" in result.stderr
    assert model.name in result.stderr


@pytest.mark.parametrize("spelling", [(), ("--model",)])
def test_inspect_and_doctor_name_a_model_alike(rm, tmp_path, spelling):
    assert run("inspect", *spelling, rm.bundle.root, "--json").exit_code == 0
    result = run("doctor", *spelling, tmp_path, "--json")
    assert result.exit_code == 1
    assert "has no fsrm.json" in json.loads(result.stdout)["self_test"]["error"]


def test_doctor_says_why_there_is_no_llama_and_what_to_run(monkeypatch):
    from fsrm_lite.runtimes.llama import engine

    monkeypatch.setattr(
        engine, "why_not", lambda: "llama-cpp-python is not installed; run: pip install 'fsrm-lite[judge]'"
    )
    result = run("doctor", "--json")
    assert json.loads(result.stdout)["llama.cpp"].endswith("run: pip install 'fsrm-lite[judge]'")
    assert json.loads(result.stdout)["self_test"]["passed"]
    assert json.loads(result.stdout)["self_test"]["judge"].startswith("onnx: ")


def test_doctor_says_whether_the_operators_are_compiled(monkeypatch):
    from fsrm_lite.runtimes.onnx import kernels

    monkeypatch.setenv(kernels.SWITCH, "0")
    assert json.loads(run("doctor", "--json").stdout)["compiled_operators"] == "unused, FSRM_LITE_KERNELS is 0"
    monkeypatch.delenv(kernels.SWITCH)
    monkeypatch.setattr(kernels, "library", lambda: None)
    assert json.loads(run("doctor", "--json").stdout)["compiled_operators"].startswith(
        "not built, so the fast path is slower"
    )


def test_doctor_passes_its_self_test():
    result = run("doctor", "--json")
    assert result.exit_code == 0
    findings = json.loads(result.stdout)
    assert findings["self_test"]["passed"]
    assert findings["llama.cpp"] == "available"
    compiled = findings["compiled_operators"] == "built"
    assert findings["self_test"]["judge"].startswith("onnx: " if compiled else "llama.cpp: ")
    assert findings["packages"]["onnxruntime"] != "not installed"


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path):
    outcome = bulk.run(tmp_path, kills=4, seed=3)
    assert outcome.tried >= 4
    assert outcome.found == []


class InProcess:
    """Stands in for the workers of a Ray cluster: one of them, in this process, that reads two batches ahead."""

    def __init__(self, source, *, address, workers, **options):
        from fsrm_lite.integrations.ray import Worker

        assert (address, workers) == ("local", 2)
        self.worker = Worker(source, options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def map(self, kind, batches):
        sent, batches = [], iter(batches)
        while True:
            sent += list(itertools.islice(batches, 3 - len(sent)))
            if not sent:
                return
            rows = sent.pop(0)
            try:
                reading = self.worker.read(kind, rows)
                yield self.worker.finish(kind, rows, reading.scores) if reading.results is None else reading.results
            except InputError as error:
                yield error


RAY_ROWS = {
    "score": {"response": "The answer is 15 pens."},
    "compare": {"chosen": "The answer is 15 pens.", "rejected": "The answer is 14 pens."},
    "rank": {"responses": ["15 pens", "14 pens", "41 cups"]},
}


@pytest.mark.parametrize("command", ["score", "compare", "rank"])
@pytest.mark.parametrize("bad", [None, "skip", "stop"])
def test_a_cluster_writes_what_one_process_writes(tmp_path, monkeypatch, command, bad):
    monkeypatch.setattr("fsrm_lite.integrations.ray.RayPool", InProcess)
    rows = [
        {"id": i, "prompt": f"Mia has {i % 5 + 3} pens. Mia finds 8 more. How many?"} | RAY_ROWS[command]
        for i in range(9)
    ]
    lines = [json.dumps(row) for row in rows]
    if bad:
        lines[6] = "{"
    source = tmp_path / "in.jsonl"
    source.write_text("".join(line + "\n" for line in lines))
    options = ["--batch-size", "2", "--threads", "1", "--judge", "auto", "--on-error", bad or "stop"]
    outputs = []
    for more in ([], ["--ray-workers", "2", "--ray"]):
        target = tmp_path / f"out{len(more)}.jsonl"
        done = CliRunner().invoke(main, [command, str(source), "-o", str(target), *options, *more])
        assert done.exit_code == {None: 0, "skip": 1, "stop": 2}[bad], done.output
        outputs.append((target.read_bytes(), done.stderr))
    assert outputs[0] == outputs[1]
    assert outputs[0][0].count(b"\n") == {None: 9, "skip": 8, "stop": 6}[bad]
    again = CliRunner().invoke(main, [command, str(source), "-o", str(target), *options, "--resume", *more])
    assert (again.exit_code == 0) == (bad is None)
    assert target.read_bytes() == outputs[0][0]


def test_a_cluster_is_for_files(tmp_path):
    done = CliRunner().invoke(main, ["score", "--prompt", "q", "--response", "a", "--ray"])
    assert done.exit_code == 2
    assert "--ray is for the files" in done.stderr


def table(path):
    parquet = pytest.importorskip("pyarrow.parquet")
    return parquet.read_table(path).to_pylist()


@pytest.fixture
def parquet_source(source, tmp_path):
    """The rows of ``source`` as a Parquet file."""
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "in.parquet"
    parquet.write_table(pa.Table.from_pylist(rows(source)), path)
    return path


def test_parquet_in_and_out_hold_the_rows_of_json_lines(source, parquet_source, tmp_path):
    runs = [(source, "a.jsonl"), (parquet_source, "b.jsonl"), (source, "c.parquet"), (parquet_source, "d.parquet")]
    found = []
    for read, name in runs:
        done = run("score", str(read), "-o", str(tmp_path / name), "--judge", "never")
        assert done.exit_code == 0, done.output
        found.append(rows(tmp_path / name) if name.endswith("jsonl") else table(tmp_path / name))
    assert found[0] == found[1]
    assert found[2] == found[3]
    assert [{name: value for name, value in row.items() if value is not None} for row in found[2]] == [
        {name: value for name, value in row.items() if value is not None} for row in found[0]
    ]
    assert not list(tmp_path.glob(".[cd].parquet*"))  # nothing is left beside a table


def test_a_parquet_output_that_broke_off_goes_on_and_one_that_is_whole_is_kept(parquet_source, tmp_path, monkeypatch):
    target = tmp_path / "out.parquet"
    command = ["score", str(parquet_source), "-o", str(target), "--judge", "never", "--batch-size", "1"]
    full = [*command[:3], str(tmp_path / "full.parquet"), *command[4:]]
    assert run(*full).exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr("fsrm_lite.results.write_parquet", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(*command).exit_code != 0
    beside = tmp_path / ".out.parquet.jsonl"
    assert beside.is_file()
    assert not target.exists()
    beside.write_bytes(beside.read_bytes()[:-20])
    refused = run(*command)
    assert (refused.exit_code, "--resume" in refused.stderr) == (2, True)
    assert run(*command, "--resume").exit_code == 0
    assert table(target) == table(tmp_path / "full.parquet")
    assert not beside.exists()
    for more in ([], ["--resume"]):
        kept = run(*command, *more)
        assert (kept.exit_code, "out.parquet exists, and is whole" in kept.stderr) == (2, True)
    with monkeypatch.context() as patch:
        patch.setattr("fsrm_lite.results.write_parquet", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(*command, "--overwrite").exit_code != 0
    assert "is whole" in run(*command).stderr
    assert run(*command, "--resume").exit_code == 0  # what was to replace it goes on, too
    assert table(target) == table(tmp_path / "full.parquet")
    assert run(*command, "--overwrite").exit_code == 0


def test_a_table_that_finds_no_room_keeps_its_rows(parquet_source, tmp_path, monkeypatch):
    target = tmp_path / "out.parquet"
    command = ["score", str(parquet_source), "-o", str(target), "--judge", "never"]
    with monkeypatch.context() as patch:
        patch.setattr("fsrm_lite.results.write_parquet", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        done = run(*command)
    assert (done.exit_code, "No space left; all rows are in" in done.stderr) == (2, True)
    assert run(*command, "--resume").exit_code == 0
    assert len(table(target)) == 3


def test_a_table_is_not_written_through_a_link_that_nobody_named(parquet_source, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("mine")
    (tmp_path / ".out.parquet.jsonl").symlink_to(other)
    done = run("score", parquet_source, "-o", tmp_path / "out.parquet", "--judge", "never", "--overwrite")
    assert (done.exit_code, "is a link, and so not ours" in done.stderr) == (2, True)
    assert other.read_text() == "mine"


def test_a_bad_row_of_a_table_stops_or_is_skipped_and_the_others_are_kept(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    data = [{"prompt": "What is 2 + 3?", "response": text} for text in ("5", "", "41")]
    parquet.write_table(pa.Table.from_pylist(data), tmp_path / "in.parquet")
    command = ["score", str(tmp_path / "in.parquet"), "-o", str(tmp_path / "out.parquet"), "--judge", "never"]
    stopped = run(*command)
    assert (stopped.exit_code, "line 2: the response is empty" in stopped.stderr) == (2, True)
    assert not (tmp_path / "out.parquet").exists()
    assert run(*command, "--resume", "--on-error", "skip").exit_code == 1
    assert [row["response"] for row in table(tmp_path / "out.parquet")] == ["5", "41"]


def test_a_number_that_json_does_not_have_costs_its_row_alone(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    data = [{"prompt": "What is 2 + 3?", "response": "5", "weight": weight} for weight in (1.0, float("nan"), 2.0)]
    parquet.write_table(pa.Table.from_pylist(data), tmp_path / "in.parquet")
    done = run("score", str(tmp_path / "in.parquet"), "--judge", "never", "--on-error", "skip")
    assert (done.exit_code, "line 2: invalid JSON" in done.stderr) == (1, True)
    assert [json.loads(line)["weight"] for line in done.stdout.splitlines()] == [1.0, 2.0]


@pytest.mark.parametrize("command", ["score", "compare", "rank"])
def test_a_cluster_reads_and_writes_tables_too(tmp_path, monkeypatch, command):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("fsrm_lite.integrations.ray.RayPool", InProcess)
    data = [
        {"id": i, "prompt": f"Mia has {i + 3} pens. Mia finds 8 more. How many?"} | RAY_ROWS[command] for i in range(5)
    ]
    parquet.write_table(pa.Table.from_pylist(data), tmp_path / "in.parquet")
    found = []
    for more in ([], ["--ray-workers", "2", "--ray"]):
        target = tmp_path / f"out{len(more)}.parquet"
        options = ["--batch-size", "2", "--threads", "1"]
        done = run(command, str(tmp_path / "in.parquet"), "-o", str(target), *options, *more)
        assert done.exit_code == 0, done.output
        found.append(table(target))
    assert found[0] == found[1]
    assert [row["id"] for row in found[0]] == [0, 1, 2, 3, 4]
