"""The commands a newcomer types: JSONL in and out, single calls, errors in one line, broken-off runs."""

import json

import pytest
from click.testing import CliRunner

from fsrm_lite.cli import COMMANDS, main
from fsrm_lite.models.data import pair_row

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
    result = run("compare", "--prompt", QUESTION, "--first", "5", "--second", "6", "--json")
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


@pytest.mark.parametrize("tail", ["", '{"half": '])
def test_a_broken_off_run_goes_on(source, tmp_path, tail):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    lines = source.read_text().splitlines()
    source.write_text("\n".join([lines[0], "{oops", *lines[1:]]) + "\n")
    run("score", source, "-o", whole, "--on-error", "skip", "--batch-size", 1, *FAST)
    out.write_text("".join(whole.read_text().splitlines(keepends=True)[:2]) + tail)
    assert run("score", source, "-o", out, "--resume", "--on-error", "skip", "--batch-size", 1, *FAST).exit_code == 1
    same = ("id", "score", "logit")
    assert [[r[k] for k in same] for r in rows(out)] == [[r[k] for k in same] for r in rows(whole)]


def test_a_broken_off_run_goes_on_past_rows_that_turned_out_bad_late(source, tmp_path):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    lines = source.read_text().splitlines()
    taken = json.dumps(json.loads(lines[0]) | {"id": 9, "tokens_read": 3})
    source.write_text("\n".join([lines[0], taken, *lines[1:]]) + "\n")
    assert run("score", source, "-o", whole, "--on-error", "skip", *FAST).exit_code == 1
    out.write_text("".join(whole.read_text().splitlines(keepends=True)[:2]))
    resumed = run("score", source, "-o", out, "--resume", "--on-error", "skip", *FAST)
    assert resumed.exit_code == 1
    assert "line 2: skipped by the run that broke off" in resumed.stderr
    assert [r["id"] for r in rows(out)] == [r["id"] for r in rows(whole)] == [0, 1, 2]


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


def test_resuming_another_run_is_refused(source, tmp_path):
    out = tmp_path / "out.jsonl"
    run("score", source, "-o", out, *FAST)
    lines = source.read_text().splitlines(keepends=True)
    source.write_text("".join(reversed(lines)))
    result = run("score", source, "-o", out, "--resume", *FAST)
    assert result.exit_code == 2
    assert "row 1 of the output is not this input's" in result.stderr
    assert run("score", source, "-o", out, "--resume", "--overwrite", *FAST).exit_code == 2


@pytest.mark.parametrize(("before", "after"), [((), ("--prefix", "p_")), (("--prefix", "p_"), ())])
def test_resuming_with_another_prefix_is_refused(source, tmp_path, before, after):
    out = tmp_path / "out.jsonl"
    run("score", source, "-o", out, *before, *FAST)
    written = out.read_text()
    assert run("score", source, "-o", out, "--resume", *before, *FAST).exit_code == 0
    assert (
        "row 1 of the output is not this input's" in run("score", source, "-o", out, "--resume", *after, *FAST).stderr
    )
    assert out.read_text() == written


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


def test_doctor_says_why_there_is_no_judge_and_what_to_run(monkeypatch):
    from fsrm_lite.runtimes.llama import engine

    monkeypatch.setattr(
        engine, "why_not", lambda: "llama-cpp-python is not installed; run: pip install 'fsrm-lite[judge]'"
    )
    result = run("doctor", "--json")
    assert json.loads(result.stdout)["judge"].endswith("run: pip install 'fsrm-lite[judge]'")
    assert json.loads(result.stdout)["self_test"]["passed"]


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
    assert findings["judge"] == "available"
    assert findings["packages"]["onnxruntime"] != "not installed"
