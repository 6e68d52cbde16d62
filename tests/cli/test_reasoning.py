"""``fsrm-lite distill`` and ``fit-critic`` from the command line, with functions and stand-ins for models."""

import json

import pytest
from click.testing import CliRunner
from helpers.loops import readable_model

from fsrm_lite.cli import main
from fsrm_lite.scorer import FastSlowRM


def run(*arguments, stdin=None):
    return CliRunner().invoke(main, [str(a) for a in arguments], input=stdin)


def write_questions(tmp_path, rows):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


QUESTIONS = [{"question": "books/1", "answer": 1}, {"question": "books/2", "answer": 3}]


def test_distill_writes_labelled_traces_and_resumes(tmp_path):
    questions, out = write_questions(tmp_path, QUESTIONS), tmp_path / "traces.jsonl"
    first = run("distill", questions, "--reasoner", "os.path:basename", "-o", out, "--samples", 2)
    assert (first.exit_code, first.output) == (
        0,
        f"{out}: 4 traces written, 50.0% of them right; 0 were there before\n",
    )
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(r["response"], r["label"], r["sample"]) for r in rows] == [
        ("1", 1, 0),
        ("1", 1, 1),
        ("2", 0, 0),
        ("2", 0, 1),
    ]
    out.write_text(out.read_text()[:-5])
    again = run("distill", questions, "--reasoner", "os.path:basename", "-o", out, "--samples", 2, "--json")
    assert json.loads(again.stdout) == {"written": 1, "kept": 3, "right": 0, "skipped": 0, "failed": 0}


def test_distill_goes_on_only_with_what_made_the_traces(tmp_path, monkeypatch):
    questions, out = write_questions(tmp_path, QUESTIONS), tmp_path / "traces.jsonl"
    command = ("distill", questions, "--reasoner", "os.path:basename", "-o", out, "--samples", 2)
    assert run(*command).exit_code == 0
    result = run(*command, "--seed", 1)
    assert result.exit_code == 2
    assert "--seed was 0 and is 1" in result.stderr
    monkeypatch.setattr("fsrm_lite.cli.identity.__version__", "0.0.1")
    result = run(*command)
    assert result.exit_code == 2
    assert "fsrm-lite was " in result.stderr


def test_distill_reads_standard_input(tmp_path):
    result = run(
        "distill",
        "-",
        "--reasoner",
        "os.path:basename",
        "-o",
        tmp_path / "t.jsonl",
        "--samples",
        1,
        stdin=json.dumps(QUESTIONS[0]) + "\n",
    )
    assert "1 traces written" in result.output


def test_distill_question_without_answer_stops_or_is_skipped(tmp_path):
    questions = write_questions(tmp_path, [{"question": "books/1"}, *QUESTIONS])
    command = ("distill", questions, "--reasoner", "os.path:basename", "-o", tmp_path / "t.jsonl")
    stopped = run(*command)
    assert (stopped.exit_code, stopped.stderr.count("\n")) == (2, 1)
    assert "row 1 has no usable answer" in stopped.stderr
    skipped = run(*command, "--on-error", "skip")
    assert skipped.exit_code == 0
    assert "1 questions without a usable answer" in skipped.stderr


def test_distill_reasoner_that_always_fails_ends_with_1(tmp_path):
    result = run(
        "distill", write_questions(tmp_path, QUESTIONS), "--reasoner", "os.path:getsize", "-o", tmp_path / "t.jsonl"
    )
    assert result.exit_code == 1
    assert "the reasoner failed on 2" in result.stderr


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--reasoner", "oracle"], "is unknown"),
        (["--reasoner", "os.path:basename", "--model", "x"], "for the reasoner 'solve' only"),
        (["--reasoner", "os.path:basename", "--samples", "0"], "n is 0, expected a whole number of at least 1"),
        (["--reasoner", "os.path:basename", "--extractor", "roman"], "extractor 'roman' is unknown"),
        (["--reasoner", "file:///x"], "cannot be imported"),
        (["--reasoner", "os.path:basename", "-o", "/no/such/folder/t.jsonl"], "there is no folder"),
    ],
)
def test_distill_bad_usage_is_one_line_and_2(tmp_path, options, match):
    result = run("distill", write_questions(tmp_path, QUESTIONS), "-o", tmp_path / "t.jsonl", *options)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert match in result.stderr


def test_distill_malformed_row_is_named(tmp_path):
    questions = tmp_path / "q.jsonl"
    questions.write_text('{"question": "a/1", "answer": 1}\n{"question"\n')
    result = run("distill", questions, "--reasoner", "os.path:basename", "-o", tmp_path / "t.jsonl")
    assert result.exit_code == 2
    assert "line 2" in result.stderr


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    model = readable_model(tmp_path)
    monkeypatch.setattr(FastSlowRM, "from_pretrained", lambda source=None: model)
    return model


def write_traces(tmp_path, questions):
    path = tmp_path / "traces.jsonl"
    with path.open("w") as file:
        for q in range(questions):
            for k in range(2):
                label = (q + k) % 2
                row = {
                    "question": f"q{q}",
                    "reference": "1",
                    "sample": k,
                    "response": f"{q} " + "+" * (1 + 2 * label),
                    "answer": str(label),
                }
                file.write(json.dumps(row | {"label": label, "tokens_generated": 3}) + "\n")
        file.write('{"question": "cut o')
    return path


def test_fit_critic_reports_and_writes(tmp_path, stand_in):
    pytest.importorskip("sklearn")
    result = run("fit-critic", write_traces(tmp_path, 200), "-o", tmp_path / "critic", "--head", "logistic")
    assert result.exit_code == 0, result.output
    assert "AUROC     1.000" in result.stdout
    assert "ECE" in result.stdout
    assert {p.name for p in (tmp_path / "critic").iterdir()} == {"critic.json", "critic.onnx"}
    as_json = run("fit-critic", write_traces(tmp_path, 200), "-o", tmp_path / "critic", "--json")
    assert json.loads(as_json.stdout)["auroc"] == 1.0


def test_fit_critic_too_few_questions(tmp_path, stand_in):
    result = run("fit-critic", write_traces(tmp_path, 10), "-o", tmp_path / "critic")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "distil more questions" in result.stderr
    assert not (tmp_path / "critic").exists()
