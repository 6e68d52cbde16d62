"""Reasoners, distillation and the loop: right, wrong, silent, raising and hanging ones."""

import http.server
import json
import logging
import re
import shutil
import threading
import time
import urllib.request
from dataclasses import replace
from types import SimpleNamespace

import pytest
from helpers.loops import FakeRM, readable_model

from fsrm_lite import FastSlowRM
from fsrm_lite.errors import BundleError, DataFormatError, InputError, JudgeError, ReasonerError
from fsrm_lite.loops.critic import REJECTED, Review, RewardCritic, SelfCritic
from fsrm_lite.loops.distill import Trace, distill, read_traces
from fsrm_lite.loops.loop import LoopOutcome, ReasoningLoop
from fsrm_lite.loops.opening import open_reasoner
from fsrm_lite.loops.reasoners import CallableReasoner, EndpointReasoner, Proposal, Sampling, SolveReasoner, Task, ask
from fsrm_lite.ranking.answers import final


class Script:
    """A reasoner that takes its answers from a list per question, one response per turn.

    After the list's end it repeats the last one. Where the list has None, it fails.
    """

    def __init__(self, **answers):
        self.answers = answers
        self.asked = []
        self.turns = dict.fromkeys(answers, 0)

    def propose(self, tasks, sampling):
        self.asked.append((tasks, sampling))
        told = [self.answers[t.question][min(self.turns[t.question], len(self.answers[t.question]) - 1)] for t in tasks]
        if None in told:
            raise ReasonerError("no idea")
        for task in tasks:
            self.turns[task.question] += 1
        return [[Proposal(text, 5)] * sampling.n for text in told]


class Plus:
    """A critic that accepts a response with a ``+``, scores by length, and counts one token per review."""

    def __init__(self):
        self.seen = []

    def review(self, items):
        self.seen.append(list(items))
        return [Review("+" in response, len(response) / 100, 1, 10) for _, response in items]


# --- reasoners ---


def test_callable_reasoner_samples_and_takes_feedback():
    count = iter(range(10))
    groups = CallableReasoner(lambda q: f"{q}{next(count)} x").propose([Task("a"), Task("b")], Sampling(n=2))
    assert [[(p.text, p.tokens_generated) for p in g] for g in groups] == [
        [("a0 x", 2), ("a1 x", 2)],
        [("b2 x", 2), ("b3 x", 2)],
    ]
    told = CallableReasoner(lambda q, rejected: "/".join(rejected), feedback=True, timeout_s=None).propose(
        [Task("a", ("1", "2"))], Sampling()
    )
    assert told[0][0].text == "1/2"


def test_callable_reasoner_raising_hanging_or_returning_nothing():
    with pytest.raises(ReasonerError, match="KeyError: 'x'"):
        CallableReasoner(lambda q: {}["x"]).propose([Task("a")], Sampling())
    with pytest.raises(ReasonerError, match="returned a NoneType"):
        CallableReasoner(lambda q: None).propose([Task("a")], Sampling())
    hang = threading.Event()
    with pytest.raises(ReasonerError, match=r"no answer within 0\.05 s"):
        CallableReasoner(lambda q: hang.wait(5) and "x", timeout_s=0.05).propose([Task("a")], Sampling())
    hang.set()


def test_solve_reasoner_renders_samples_and_reports_failures(tmp_path):
    model, asked = readable_model(tmp_path, context=40), []

    def generate(prompts, **settings):
        asked.append((prompts, settings))
        return [[SimpleNamespace(text=f" {len(ids)} ", tokens=3, ended=True)] * settings["n"] for ids in prompts]

    model.judge = SimpleNamespace(generate=generate)
    reasoner = SolveReasoner(model)
    assert reasoner.propose([Task("a"), Task("bc", ("no",))], Sampling(n=2, seed=7)) == [
        [Proposal("2", 3)] * 2,
        [Proposal("3", 3)] * 2,
    ]
    assert asked[0][1] == {"n": 2, "max_tokens": 256, "temperature": 0.8, "top_p": 1.0, "seed": 7, "watch": None}
    with pytest.raises(ReasonerError, match="the context holds 40"):
        reasoner.propose([Task("x" * 50)], Sampling())


def test_solve_reasoner_asked_for_too_many_is_bad_usage(tmp_path):
    model = readable_model(tmp_path)
    with pytest.raises(InputError, match="n is 257, expected at most 256"):
        ask(SolveReasoner(model), [Task("a")], Sampling(n=257))


def test_solve_reasoner_loads_the_judge_when_it_is_asked():
    with FastSlowRM.from_pretrained(threads=1) as model:
        reasoner = SolveReasoner(model)
        assert model._slow._judge is None
        assert reasoner.prompt_ids(Task("a"))
        assert model._slow._judge is None
        assert reasoner.propose([Task("a")], Sampling(max_tokens=2))[0]
        assert model._slow._judge is not None


def test_solve_reasoner_refuses_a_damaged_slow_file_before_it_is_asked(tmp_path):
    with FastSlowRM.from_pretrained(threads=1) as model:
        shutil.copytree(model.bundle.path("fast").parents[1], tmp_path / "bundle")
    path = tmp_path / "bundle" / "slow" / "model.gguf"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    damaged = FastSlowRM.from_pretrained(tmp_path / "bundle", threads=1, judge_engine="llama.cpp")
    with damaged as model, pytest.raises(BundleError, match=r"model\.gguf"):
        SolveReasoner(model)


def test_solve_reasoner_needs_the_template(tmp_path):
    model = readable_model(tmp_path)
    model.bundle.manifest = replace(
        model.bundle.manifest, templates={"pointwise_fast": model.bundle.manifest.templates["pointwise_fast"]}
    )
    with pytest.raises(InputError, match="no template 'solve'"):
        SolveReasoner(model)


class Odd:
    """A reasoner of a user's own that does as it likes with each batch."""

    def __init__(self, propose):
        self.propose = lambda tasks, sampling: propose(tasks)


@pytest.mark.parametrize(
    ("propose", "why"),
    [
        (
            lambda tasks: [[Proposal(f"{4 // (len(tasks[0].question) - 1)}", 1)]],
            "expected a list of proposals for each of 2 tasks",
        ),
        (
            lambda tasks: [[Proposal(f"{4 // (len(t.question) - 1)}", 1)] for t in tasks],
            "raised ZeroDivisionError: integer division",
        ),
    ],
)
def test_ask_keeps_the_answers_beside_a_failure(propose, why, caplog):
    assert ask(Odd(propose), [Task("a"), Task("bc"), Task("def")], Sampling()) == [
        [],
        [Proposal("4", 1)],
        [Proposal("2", 1)],
    ]
    assert ask(Odd(propose), [], Sampling()) == []
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("groups", [None, 3, "abc", [None], [["text"]], [Proposal("4", 1)]])
def test_ask_survives_a_reasoner_that_gives_something_else(groups, caplog):
    assert ask(Odd(lambda tasks: groups), [Task("a")], Sampling()) == [[]]
    assert "expected a list of proposals for each of 1 tasks" in caplog.text


def test_ask_does_not_ask_again_what_has_been_answered():
    asked = []
    groups = ask(
        CallableReasoner(lambda q: asked.append(q) or {"a": "1", "c": "3"}[q]), [Task(q) for q in "abc"], Sampling()
    )
    assert [[p.text for p in g] for g in groups] == [["1"], [], ["3"]]
    assert asked == ["a", "b", "c"]


def test_ask_counts_half_a_character_as_nothing():
    assert ask(CallableReasoner(lambda q: "so \ud83d"), [Task("a")], Sampling()) == [[Proposal("", 2)]]


@pytest.mark.parametrize(
    "bad", [{"function": "len"}, {"function": len, "timeout_s": 0}, {"function": len, "timeout_s": float("nan")}]
)
def test_callable_reasoner_bad_settings(bad):
    with pytest.raises(InputError, match="expected"):
        CallableReasoner(**bad)


@pytest.mark.parametrize(
    "bad",
    [
        {"n": 0}, {"n": 2.5}, {"n": True}, {"max_tokens": 0}, {"seed": None}, {"top_p": 0.0},
        {"temperature": -1.0}, {"temperature": "hot"}, {"temperature": float("nan")},
    ],
)  # fmt: skip
def test_sampling_out_of_range(bad):
    with pytest.raises(InputError, match="sampling"):
        Sampling(**bad)


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("solve", "needs a model"),
        ("oracle", "is unknown"),
        ("sys:path", "is a list"),
        ("ftp://x", "cannot be imported"),
    ],
)
def test_open_reasoner_says_what_is_wrong(spec, match):
    with pytest.raises(InputError, match=match):
        open_reasoner(spec)


def test_open_reasoner_kinds():
    assert isinstance(open_reasoner("http://127.0.0.1:1/v1"), EndpointReasoner)
    assert open_reasoner("os.path:basename").propose([Task("a/b")], Sampling())[0][0].text == "b"


@pytest.mark.parametrize(
    ("url", "options"),
    [("file:///etc/passwd", {}), ("http://", {}), ("http://x", {"timeout_s": 0}), ("http://x", {"retries": -1})],
)
def test_endpoint_reasoner_bad_settings(url, options):
    with pytest.raises(InputError):
        EndpointReasoner(url, **options)


class Replies(http.server.BaseHTTPRequestHandler):
    """Answers with the next (status, body) of the server's list. Seconds in the place of the status make it wait."""

    def do_POST(self):
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        status, body = self.server.replies.pop(0)
        if status < 100:
            time.sleep(status)
            return
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Stay silent."""


@pytest.fixture
def endpoint():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Replies)
    server.replies, server.bodies = [], []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def completion(*texts, **usage):
    return 200, json.dumps({"choices": [{"message": {"content": t}} for t in texts], "usage": usage}).encode()


def reasoner_at(server, **options):
    return EndpointReasoner(f"http://127.0.0.1:{server.server_port}/v1/", model="m", **{"timeout_s": 10, **options})


def test_endpoint_reasoner_asks_again_where_n_is_ignored_and_shares_out_the_tokens(endpoint):
    endpoint.replies = [completion("a", completion_tokens=7), completion("b", "c", completion_tokens=5)]
    proposals = reasoner_at(endpoint, api_key="k").propose(
        [Task("q", ("no",))], Sampling(n=3, temperature=0.5, max_tokens=9, seed=4)
    )[0]
    assert [(p.text, p.tokens_generated) for p in proposals] == [("a", 7), ("b", 3), ("c", 2)]
    assert [(b["n"], b["seed"], b["max_tokens"], b["model"]) for b in endpoint.bodies] == [
        (3, 4, 9, "m"),
        (2, 5, 9, "m"),
    ]
    assert [m["role"] for m in endpoint.bodies[0]["messages"]] == ["user", "assistant", "user"]
    assert endpoint.bodies[0]["messages"][1]["content"] == "no"


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_an_endpoint_on_this_machine_is_asked_without_a_proxy(endpoint, monkeypatch, name, host):
    """A proxy could not reach it, and must not read what is asked of it."""
    for other in ("no_proxy", "NO_PROXY", "REQUEST_METHOD"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    endpoint.replies = [completion("a")]
    reasoner = EndpointReasoner(f"http://{host}:{endpoint.server_port}/v1", model="m", timeout_s=10, retries=0)
    assert reasoner.propose([Task("q")], Sampling())[0] == [Proposal("a", 1)]


def test_an_endpoint_elsewhere_is_asked_through_the_proxy_and_the_error_names_it(monkeypatch):
    for other in ("no_proxy", "NO_PROXY", "REQUEST_METHOD"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    kept = urllib.request._opener
    with pytest.raises(ReasonerError, match=r"through the proxy 127\.0\.0\.1"):
        EndpointReasoner("http://192.0.2.1:80/v1", timeout_s=2, retries=0).propose([Task("q")], Sampling())
    assert urllib.request._opener is kept  # nobody else in this process goes through the proxy from now on


def test_endpoint_reasoner_tries_again_after_a_server_error(endpoint):
    endpoint.replies = [(503, b""), completion("a")]
    assert reasoner_at(endpoint).propose([Task("q")], Sampling())[0] == [Proposal("a", 1)]


@pytest.mark.parametrize(
    ("reply", "match", "calls"),
    [
        ((401, b""), "failed after 1 tries.*401", 1),
        ((500, b""), "failed after 2 tries.*500", 2),
        ((200, b"<html>"), "not a chat completion", 1),
        ((200, b'{"choices": []}'), "no choices", 1),
        ((200, b'{"choices": [{"message": {"content": ["x"]}}]}'), "not a text", 1),
        ((200, b'{"choices": [{"text": "x"}]}'), "not a chat completion", 1),
        ((0.5, b""), "failed after 2 tries", 2),
    ],
)
def test_endpoint_reasoner_failures_are_bounded(endpoint, reply, match, calls):
    endpoint.replies = [reply] * calls
    with pytest.raises(ReasonerError, match=match):
        reasoner_at(endpoint, retries=1, timeout_s=0.2 if reply[0] < 1 else 10).propose([Task("q")], Sampling())
    assert len(endpoint.bodies) == calls


def test_endpoint_reasoner_nobody_listens():
    with pytest.raises(ReasonerError, match="failed after 1 tries"):
        EndpointReasoner("http://127.0.0.1:9/v1", timeout_s=2, retries=0).propose([Task("q")], Sampling())


# --- distillation ---


def write_traces(tmp_path, reasoner, rows, name="traces.jsonl", **options):
    out = tmp_path / name
    report = distill(rows, reasoner, out, sampling=Sampling(n=2), **options)
    return report, list(read_traces(out.open())), out


ROWS = [{"question": "a", "answer": "4"}, {"prompt": "b", "reference": 5}, {"question": "c", "answer": "6"}]


def test_distill_labels_by_the_answer(tmp_path):
    report, traces, _ = write_traces(
        tmp_path, Script(a=["so The answer is 4.0"], b=["The answer is 4."], c=["6 pens"]), ROWS
    )
    assert [(t.question, t.sample, t.answer, t.label) for t in traces] == [
        ("a", 0, "4", 1), ("a", 1, "4", 1), ("b", 0, "4", 0), ("b", 1, "4", 0), ("c", 0, "6", 1), ("c", 1, "6", 1),
    ]  # fmt: skip
    assert (report.written, report.right, report.kept, report.skipped, report.failed) == (6, 4, 0, 0, 0)
    assert traces[0].tokens_generated == 5


@pytest.mark.parametrize("cut", [1, 7, 40])
def test_distill_goes_on_after_a_half_written_line(tmp_path, cut):
    script = {"a": ["4"], "b": ["5"], "c": ["7"]}
    _, whole, out = write_traces(tmp_path, Script(**script), ROWS)
    data = out.read_bytes()
    out.write_bytes(data[:-cut])
    assert len(list(read_traces(out.open()))) == 5
    reasoner = Script(**script)
    report, again, _ = write_traces(tmp_path, reasoner, ROWS)
    assert (report.kept, report.written, again) == (5, 1, whole)
    assert [t.question for tasks, _ in reasoner.asked for t in tasks] == ["c"]
    assert out.read_bytes() == data


def test_distill_done_asks_nobody_and_repeated_questions_are_asked_once(tmp_path):
    write_traces(tmp_path, Script(a=["4"], b=["5"], c=["7"]), ROWS + ROWS)
    reasoner = Script()
    report, traces, _ = write_traces(tmp_path, reasoner, ROWS)
    assert (report.written, report.kept, len(traces), reasoner.asked) == (0, 6, 6, [])


def test_distill_failing_reasoner_loses_its_question_only_and_tries_again(tmp_path):
    report, traces, _ = write_traces(tmp_path, Script(a=["4"], b=[None], c=[" "]), ROWS)
    assert (report.written, report.failed) == (2, 2)
    report, traces, _ = write_traces(tmp_path, Script(a=["4"], b=["5"], c=["6"]), ROWS)
    assert (report.kept, report.written, len(traces)) == (2, 4, 6)


@pytest.mark.parametrize(
    "row",
    [{"question": "a"}, {"question": "a", "answer": None}, {"question": "a", "answer": "many words without a mark"}],
)
def test_distill_question_without_answer(tmp_path, row):
    with pytest.raises(DataFormatError, match="row 1 has no usable answer"):
        write_traces(tmp_path, Script(a=["4"]), [row])
    report, traces, _ = write_traces(tmp_path, Script(a=["4"], c=["6"]), [row, ROWS[2]], skip_unanswered=True)
    assert (report.skipped, [t.question for t in traces]) == (1, ["c", "c"])


def test_distill_question_with_two_answers(tmp_path):
    rows = [ROWS[0], ROWS[2], {"question": "a", "answer": "4.0"}, {"question": "a", "answer": "7"}]
    with pytest.raises(DataFormatError, match="row 4 has the answer '7', but its question had '4' before"):
        write_traces(tmp_path, Script(a=["4"], c=["6"]), rows, batch_size=2)
    report, traces, _ = write_traces(tmp_path, Script(a=["4"], c=["6"]), rows, name="again.jsonl", skip_unanswered=True)
    assert (report.skipped, [(t.question, t.label) for t in traces]) == (1, [("a", 1), ("a", 1), ("c", 1), ("c", 1)])


def test_distill_does_not_go_on_where_rows_or_extractor_changed(tmp_path):
    _, before, out = write_traces(tmp_path, Script(a=["so The answer is 4."], b=["5"], c=["6"]), ROWS)
    with pytest.raises(DataFormatError, match="row 1 has the answer '7', but its question had '4' before"):
        write_traces(tmp_path, Script(), [{"question": "a", "answer": "7"}])
    with pytest.raises(DataFormatError, match="line 1 was labelled by another extractor"):
        write_traces(tmp_path, Script(), ROWS, extractor=lambda text: text)
    assert list(read_traces(out.open())) == before


def test_distill_gives_up_on_a_reasoner_that_has_never_answered(tmp_path):
    asked = []
    rows = [{"question": f"q{i}", "answer": "1"} for i in range(100)]
    broken = CallableReasoner(lambda q: asked.append(q))
    with pytest.raises(ReasonerError, match="failed on the first 16 questions"):
        write_traces(tmp_path, broken, rows)
    assert len(asked) == 16
    report, _, _ = write_traces(tmp_path, CallableReasoner(lambda q: "1" if q == "q3" else ""), rows)
    assert (report.written, report.failed) == (2, 99)


def test_distill_keeps_each_answer_of_a_slow_reasoner_at_once(tmp_path):
    out = tmp_path / "traces.jsonl"
    seen = []
    reasoner = CallableReasoner(lambda q: seen.append(len(out.read_text().splitlines())) or "4")
    write_traces(tmp_path, reasoner, ROWS)
    assert seen == [0, 0, 2, 2, 4, 4]


def test_distill_half_a_character_is_no_answer(tmp_path):
    report, traces, _ = write_traces(tmp_path, CallableReasoner(lambda q: "4" if q == "a" else "\ud83d 4"), ROWS)
    assert (report.failed, [t.question for t in traces]) == (2, ["a", "a"])


def test_distill_question_missing(tmp_path):
    with pytest.raises(DataFormatError, match="row 2 has no question"):
        write_traces(tmp_path, Script(a=["4"]), [ROWS[0], {"answer": "4"}])


def test_distill_takes_questions_as_they_come(tmp_path):
    drawn = []
    rows = ({"question": q, "answer": "1"} for q in "abc" if drawn.append(q) is None)

    class Watching(Script):
        def propose(self, tasks, sampling):
            assert len(drawn) <= len(self.asked) + 1
            return super().propose(tasks, sampling)

    write_traces(tmp_path, Watching(a=["1"], b=["1"], c=["1"]), rows, batch_size=1)
    assert drawn == ["a", "b", "c"]


def test_distill_does_not_append_to_something_else(tmp_path):
    (tmp_path / "traces.jsonl").write_text('{"question": "a"}\n')
    with pytest.raises(DataFormatError, match="line 1 is not a trace"):
        write_traces(tmp_path, Script(a=["4"]), ROWS[:1])


def test_read_traces_names_the_bad_line():
    good = (
        json.dumps(
            {
                "question": "a",
                "reference": "1",
                "sample": 0,
                "response": "1",
                "answer": "1",
                "label": 1,
                "tokens_generated": 1,
            }
        )
        + "\n"
    )
    assert list(read_traces([good, "\n"])) == [Trace("a", "1", 0, "1", "1", 1, 1)]
    assert list(read_traces([b"\xef\xbb\xbf" + good.encode()])) == [
        Trace("a", "1", 0, "1", "1", 1, 1)
    ]  # as Windows saves
    with pytest.raises(DataFormatError, match=r"line 1 .*0xe9, which is not UTF-8"):
        list(read_traces([good.replace('"question": "a"', '"question": "caf\u00e9"').encode("latin-1")]))
    with pytest.raises(DataFormatError, match="line 2"):
        list(read_traces([good, good.replace('"label": 1', '"label": 2')]))


# --- the loop ---


def test_loop_accepts_at_once():
    result = ReasoningLoop(Script(q=["+"]), Plus()).run("q")
    assert (result.outcome, result.response, len(result.turns), result.tokens_generated) == (
        LoopOutcome.ACCEPTED,
        "+",
        1,
        6,
    )


def test_loop_tells_what_was_rejected_and_moves_the_seed():
    reasoner = Script(q=["one", "two", "three +"])
    result = ReasoningLoop(reasoner, Plus(), sampling=Sampling(seed=3)).run("q")
    assert (result.response, [t.accepted for t in result.turns]) == ("three +", [False, False, True])
    assert [tasks[0].rejected for tasks, _ in reasoner.asked] == [(), ("one",), ("one", "two")]
    assert len({sampling.seed for _, sampling in reasoner.asked}) == 3


def test_loop_out_of_turns_ends_with_the_best_or_abstains():
    answers = {"q": ["short", "the longest of all", "longer"]}
    best = ReasoningLoop(Script(**answers), Plus(), max_turns=3).run("q")
    assert (best.outcome, best.response, best.score) == (LoopOutcome.BEST, "the longest of all", 0.18)
    silent = ReasoningLoop(Script(**answers), Plus(), max_turns=3, otherwise="abstain").run("q")
    assert (silent.outcome, silent.response, silent.score, silent.tokens_generated) == (
        LoopOutcome.ABSTAINED,
        None,
        None,
        18,
    )


def test_loop_best_answer_adds_up_the_scores_of_its_responses():
    answers = {"q": ["1234567890 The answer is 1.", "The answer is 2.", "so The answer is 2.", "no"]}
    loop = ReasoningLoop(Script(**answers), Plus())
    assert loop.run("q").response == answers["q"][0]
    assert replace(loop, reasoner=Script(**answers), extractor=final).run("q").response == answers["q"][2]
    scored = replace(loop, reasoner=Script(q=["one", "four"]), extractor=lambda text: None, max_turns=2).run("q")
    assert (scored.response, scored.score) == ("four", 0.04)


def test_loop_takes_an_extractor_by_name():
    answers = ["1234567890 The answer is 1.", "The answer is 2.", "so The answer is 2."]
    assert ReasoningLoop(Script(q=answers), Plus(), max_turns=3, extractor="final").run("q").response == answers[2]


def test_loop_does_not_ask_the_critic_twice_about_one_text():
    critic = Plus()
    result = ReasoningLoop(Script(q=["same"]), critic, max_turns=3).run("q")
    assert [t.repeated for t in result.turns] == [False, True, True]
    assert len(critic.seen) == 1
    assert result.tokens_generated == 16


def test_loop_many_questions_share_batches_and_a_failing_one_stands_alone():
    reasoner, critic = Script(a=["+"], b=["no", "+"], c=[None], d=["", "+"]), Plus()
    results = ReasoningLoop(reasoner, critic, max_turns=2).run_many(["a", "b", "c", "d"])
    assert [r.outcome for r in results] == ["accepted", "accepted", "abstained", "accepted"]
    assert [t.failed for t in results[2].turns] == [True, True]
    assert [t.failed for t in results[3].turns] == [True, False]
    assert critic.seen == [[("a", "+"), ("b", "no")], [("b", "+"), ("d", "+")]]


def test_loop_hanging_reasoner_abstains_in_bounded_time():
    hang = threading.Event()
    loop = ReasoningLoop(CallableReasoner(lambda q: hang.wait(5) and "x", timeout_s=0.02), Plus(), max_turns=2)
    assert loop.run("q").outcome == "abstained"
    hang.set()


def test_loop_no_questions_and_json():
    assert ReasoningLoop(Script(), Plus()).run_many([]) == []
    result = ReasoningLoop(Script(q=["+"]), Plus()).run("q").to_dict()
    assert json.loads(json.dumps(result))["tokens_generated"] == 6


def test_loop_bad_settings():
    bad = {
        "max_turns": [0, 1.5, True],
        "otherwise": ["guess"],
        "extractor": ["roman"],
        "reasoner": [len],
        "critic": [len],
    }
    for name, value in [(name, value) for name, values in bad.items() for value in values]:
        with pytest.raises(InputError, match=rf"{name}.* {re.escape(repr(value))}"):
            ReasoningLoop(**{"reasoner": Script(), "critic": Plus(), name: value})
    for questions, match in [("abc", "questions is 'abc'"), (["a", None], "question 1 is None")]:
        with pytest.raises(InputError, match=match):
            ReasoningLoop(Script(), Plus()).run_many(questions)


# --- critics without a fitted head ---


def test_reward_critic_threshold_and_unreadable_responses():
    critic = RewardCritic(FakeRM(), threshold=0.6)
    verdicts = critic.review([("q", "+"), ("q", "++"), ("q", ""), ("q", "x" * 300)])
    assert [v.accept for v in verdicts] == [False, True, False, False]
    assert verdicts[2:] == [REJECTED, REJECTED]
    with pytest.raises(InputError, match="threshold is 2"):
        RewardCritic(FakeRM(), threshold=2)


def test_reward_critic_refuses_bad_options_before_it_takes_them_for_bad_responses(rm):
    with pytest.raises(InputError, match="unknown options \\['votez'\\]"):
        RewardCritic(rm, votez=3)
    with pytest.raises(InputError, match="judge is 'sometimes'"):
        RewardCritic(rm, judge="sometimes")


def test_reward_critic_failing_judge_is_answered_fast(caplog):
    rm, fast = FakeRM(), FakeRM()

    def score_many(items, *, judge):
        if items and judge != "never":
            raise JudgeError("no memory")
        return fast.score_many(items, judge=judge)

    rm.score_many = score_many
    with caplog.at_level(logging.WARNING, logger="fsrm_lite.loops.critic"):
        assert RewardCritic(rm).review([("q", "+++")])[0].accept
    assert "no memory" in caplog.text
    with pytest.raises(JudgeError, match="no memory"):
        RewardCritic(rm, judge="always").review([("q", "+++")])


def test_self_critic_believes_the_first_yes_or_no():
    replies = {"yes.": True, "No, yes": False, "Hmm": False, "I say YES": True}
    reasoner = CallableReasoner(lambda prompt: prompt.split("Answer: ")[1].split("\n")[0])
    verdicts = SelfCritic(reasoner).review([("q {response}", text) for text in replies] + [("q", " ")])
    assert [v.accept for v in verdicts] == [*replies.values(), False]
    assert verdicts[0].tokens_generated == 1


def test_self_critic_asks_about_the_question_as_it_stands():
    asked = []
    SelfCritic(CallableReasoner(lambda prompt: asked.append(prompt) or "yes")).review([("What is {response}?", "4")])
    assert "What is {response}?" in asked[0]
    assert asked[0].count("4") == 1


def test_self_critic_failing_reasoner_rejects():
    assert SelfCritic(CallableReasoner(lambda prompt: 1 / 0)).review([("q", "4")]) == [REJECTED]


def test_read_traces_takes_published_solutions_as_they_are():
    row = {
        "question": "How many pens?",
        "ground_truth": "2+3=<<2+3=5>>5\nA: 5",
        "small": {"is_correct": False, "solution": "2+4=<<2+4=6>>6\nA: 6"},
        "large": {"is_correct": True, "solution": "2+3=<<2+3=5>>5\nA: 5"},
    }
    found = list(read_traces([json.dumps(row) + "\n", json.dumps(row | {"question": "And now?"}) + "\n"]))
    assert [(t.question, t.sample, t.response, t.answer, t.label) for t in found[:2]] == [
        ("How many pens?", 0, "2+4=6\nA: 6", "6", 0),
        ("How many pens?", 1, "2+3=5\nA: 5", "5", 1),
    ]
    assert [t.question for t in found[2:]] == ["And now?"] * 2
    with pytest.raises(DataFormatError, match="line 1: question and ground_truth must be texts"):
        list(read_traces([json.dumps(row | {"question": 3}) + "\n"]))
    with pytest.raises(DataFormatError, match=r"line 1: .* solution"):
        list(read_traces([json.dumps(row | {"small": {"is_correct": 1, "solution": None}}) + "\n"]))
