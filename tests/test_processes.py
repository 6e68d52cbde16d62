"""Forks, endings and threads that outlive the main thread: an answer or an error, never a wait for ever.

Each script runs in a process of its own, because it ends that process or forks it.
"""

import pickle
import subprocess
import sys
import threading
import time

import pytest

from fsrm_lite import FastSlowRM, GateSpec
from fsrm_lite.errors import JudgeCrashed, MisuseError
from fsrm_lite.integrations.cross_encoder import CrossEncoderRM
from fsrm_lite.integrations.loading import LazyModel
from fsrm_lite.integrations.scaling import BestOfFilter, OutcomeRewardModel
from fsrm_lite.integrations.trl import PairwiseJudge, RewardFunction

FOR_EVER = 300  # seconds after which a script is taken to hang
QUESTION, ANSWERS = "What is 2 + 3?", ["5", "41"]

START = f"""
import os, sys, threading, time
from fsrm_lite import FastSlowRM
QUESTION, ANSWERS = {QUESTION!r}, {ANSWERS!r}
"""

FORK = (
    START
    + """
from fsrm_lite import SolveReasoner
from fsrm_lite.errors import FsrmError
from fsrm_lite.integrations.cross_encoder import CrossEncoderRM
from fsrm_lite.integrations.scaling import BestOfFilter, OutcomeRewardModel
from fsrm_lite.integrations.trl import PairwiseJudge, RewardFunction
from fsrm_lite.loops import critic, gguf_reasoner
from fsrm_lite.loops.reasoners import Sampling, Task

process = sys.argv[1]
options = {"threads": 1, "judge_process": process}
rm = FastSlowRM.from_pretrained(**options)
talk = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "5"}]
if process == "inline":
    reasoner = gguf_reasoner.GgufReasoner(rm.bundle.path("slow"), template="{prompt}")
CALLS = {
    "score": lambda: rm.score(QUESTION, "5", judge="never").score,
    "thought": lambda: rm.score(QUESTION, "5", judge="always").score,
    "compare": lambda: rm.compare(QUESTION, *ANSWERS, judge="always").winner,
    "best_of_n": lambda: rm.best_of_n(QUESTION, ANSWERS, judge="always").index,
    "rank": lambda: rm.rank(QUESTION, ANSWERS, judge="never"),
    "judge": lambda: len(rm.judge.generate([[5, 6, 7]], max_tokens=4)),
    "critic": lambda: critic.RewardCritic(rm).review([(QUESTION, "5")]),
    "solve": lambda: SolveReasoner(rm).propose([Task(QUESTION)], Sampling(max_tokens=4)),
    "gguf": lambda: reasoner.propose([Task(QUESTION)], Sampling(max_tokens=4)),
    "reward": (reward := RewardFunction(**options)) and (lambda: reward(prompts=[QUESTION], completions=["5"])),
    "pairs": (pairs := PairwiseJudge(**options)) and (lambda: pairs.judge([QUESTION], [ANSWERS])),
    "cross": (cross := CrossEncoderRM(**options)) and (lambda: cross.predict([(QUESTION, "5")]).tolist()),
    "outcome": (outcome := OutcomeRewardModel(**options)) and (lambda: outcome.score(talk)),
    "best": (best := BestOfFilter(prompt=lambda doc: doc, **options)) and (lambda: best([ANSWERS], [QUESTION])),
}
if process == "subprocess":
    CALLS = {kind: CALLS[kind] for kind in ("thought", "judge", "pairs")}
before = {kind: call() for kind, call in CALLS.items()}
for kind, call in CALLS.items():
    pid = os.fork()
    if pid == 0:
        try:
            there = call()
            print(kind, "same" if there == before[kind] else f"another answer: {there}", flush=True)
        except FsrmError as error:
            print(kind, type(error).__name__, error, flush=True)
        sys.exit(7)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == 7, (kind, status)
for kind, call in CALLS.items():
    assert call() == before[kind], "the parent is disturbed"
"""
)

MAIN_ENDS = (
    START
    + """
rm = FastSlowRM.from_pretrained(threads=1)
def serve():
    threading.main_thread().join()
    print(rm.score(QUESTION, "5", judge="never").score > 0.5, rm.compare(QUESTION, *ANSWERS, judge="always").winner)
    with FastSlowRM.from_pretrained(threads=1) as other:
        print(other.score(QUESTION, "5", judge="always").route)
threading.Thread(target=serve).start()
"""
)

SERVER_STAYS = (
    START
    + """
import json, urllib.request
from fsrm_lite.serve.server import make_server
server = make_server(FastSlowRM.from_pretrained(threads=1), port=0)
threading.Thread(target=server.serve_forever).start()
def ask():
    threading.main_thread().join()
    body = json.dumps({"query": QUESTION, "documents": list(ANSWERS), "x_judge": "always"}).encode()
    url = f"http://127.0.0.1:{server.server_port}/rerank"
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as reply:
        print(reply.status, len(json.load(reply)["results"]))
    server.shutdown()
threading.Thread(target=ask).start()
"""
)

MID_THOUGHT = (
    START
    + """
import signal
how, process = sys.argv[1:]
rm = FastSlowRM.from_pretrained(threads=1, judge_process=process)
begun = threading.Event()
def watch(thoughts):
    if any(thought.text for thought in thoughts):
        begun.set()
    return True
def think():
    while True:
        rm.compare(QUESTION, *ANSWERS, judge="always", votes=16, temperature=1.5, adaptive=False, watch=watch)
        begun.set()  # of a child's thoughts nothing is watched
def read():
    while True:
        rm.score_many([(f"What is {i} + 3?", "5 " * 200) for i in range(4)], judge="never")
for call in (think, read):
    threading.Thread(target=call, daemon=True).start()
begun.wait()
if process == "subprocess":
    time.sleep(0.05)  # by now it writes the next thoughts
print("thinking", flush=True)
if how == "exit":
    sys.exit(7)
if how == "error":
    raise RuntimeError("mine")
if how == "end":
    pass
if how == "term":
    signal.pause()
"""
)


def run(script, *arguments):
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=FOR_EVER, check=False
    )


needs_fork = pytest.mark.skipif(sys.platform == "win32", reason="there is no fork on Windows")


@needs_fork
@pytest.mark.parametrize("process", ["inline", "subprocess"])
def test_a_forked_process_gets_the_same_answer_or_an_error_at_once(process):
    done = run(FORK, process)
    assert done.returncode == 0, done.stderr
    found = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert len(found) == (14 if process == "inline" else 3)
    for kind, said in found.items():
        if kind in ("reward", "pairs", "cross", "outcome", "best"):  # these load a model of their own
            assert said == "same"
        else:
            assert "opened before a fork" in said, (kind, said)


def test_threads_that_outlive_the_main_thread_go_on_scoring():
    done = run(MAIN_ENDS)
    assert (done.returncode, done.stdout.split()) == (0, ["True", "0", "slow"]), done.stderr


def test_a_server_that_outlives_the_main_thread_goes_on_answering():
    done = run(SERVER_STAYS)
    assert (done.returncode, done.stdout.split()) == (0, ["200", "2"]), done.stderr


@pytest.mark.parametrize(
    ("how", "status", "process"), [("exit", 7, "inline"), ("error", 1, "inline"), ("end", 0, "subprocess")]
)
def test_a_program_ends_in_mid_thought(how, status, process):
    done = run(MID_THOUGHT, how, process)
    assert (done.returncode, done.stdout) == (status, "thinking\n"), done.stderr
    assert ("mine" in done.stderr) == (how == "error")


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_program_is_ended_by_sigterm_in_mid_thought():
    with subprocess.Popen([sys.executable, "-c", MID_THOUGHT, "term", "inline"], stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"thinking\n"
        child.terminate()
        assert child.wait(FOR_EVER) == -15


@pytest.mark.parametrize("process", ["inline", "subprocess"])
def test_closing_while_others_score_says_that_the_model_was_closed(rm, process):
    model = FastSlowRM(rm.bundle, threads=1, judge_process=process, on_judge_crash="fast")
    raised, begun = [], threading.Barrier(5)

    def use(call):
        call()
        begun.wait()
        try:
            while True:
                call()
        except Exception as error:
            raised.append(error)

    calls = (
        lambda: model.score(QUESTION, "5", judge="never"),
        lambda: model.score_many([(f"What is {i} + 3?", "5") for i in range(40)], judge="never"),
        lambda: model.compare(QUESTION, *ANSWERS, judge="always", votes=8, temperature=1.0),
        lambda: model.score_each([(QUESTION, "5")], judge="always"),
    )
    threads = [threading.Thread(target=use, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    begun.wait()
    time.sleep(0.05)
    model.close()
    for thread in threads:
        thread.join(FOR_EVER)
    assert len(raised) == 4
    assert {type(error) for error in raised} == {MisuseError}, raised
    assert all("this model was closed" in str(error) or "this judge is closed" in str(error) for error in raised)
    assert not any(isinstance(error, JudgeCrashed) for error in raised)


def key(doc):
    return doc


@pytest.mark.parametrize(
    ("kind", "own"),
    [
        (RewardFunction, {"judge": "auto", "scale": "logit", "name": "mine"}),
        (PairwiseJudge, {"judge": "never"}),
        (CrossEncoderRM, {}),
        (OutcomeRewardModel, {"judge": "auto"}),
        (BestOfFilter, {"prompt": key, "strategy": "fast"}),
        (LazyModel, {}),
    ],
)
def test_a_pickled_wrapper_keeps_all_its_options(rm, kind, own):
    options = {"seed": 5, "votes": 2, "truncate": True, "threads": 1, "gate": GateSpec(always=True), "temperature": 0.4}
    with FastSlowRM(rm.bundle, **options) as model:
        first = kind(model, **own)
        copy = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(first))))
        with copy.model as again:
            assert again.bundle.root == rm.bundle.root
            assert {name: again.options[name] for name in options} == options
        state, expected = (
            {name: value for name, value in vars(x).items() if name not in ("_lock", "_model")} for x in (copy, first)
        )
        assert state == expected


class Tagged(RewardFunction):
    """A wrapper of somebody else's, with something of its own."""

    def __init__(self, tag, **options):
        super().__init__(**options)
        self.tag = tag


def test_a_subclass_keeps_what_is_its_own():
    assert pickle.loads(pickle.dumps(Tagged("a", threads=1))).tag == "a"
