import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.judge import ENGINES, tiny_judge_files, write_tiny_gguf

from fsrm_lite import FastSlowRM
from fsrm_lite.errors import BundleError, JudgeCrashed, JudgeError
from fsrm_lite.models.data import held_out, pair_row
from fsrm_lite.slow import worker
from fsrm_lite.slow.judge import Judge
from fsrm_lite.types import JudgeOptions

PAIRS = [("What is 1 + 1?", "2", "3"), ("Name a colour.", "red", "Tuesday")]
OPTIONS = JudgeOptions(votes=2, seed=4)
ENDLESS = JudgeOptions(votes=32, thinking_tokens=15_000, adaptive=False, temperature=0.0)


@pytest.fixture(scope="module", params=ENGINES)
def files(request, tmp_path_factory):
    return tiny_judge_files(tmp_path_factory.mktemp("worker"), request.param, context=20_000)


@pytest.fixture(scope="module")
def llama_files(tmp_path_factory):
    return tiny_judge_files(tmp_path_factory.mktemp("llama"), context=20_000)


@pytest.fixture
def judge(files):
    judge = Judge(*files, threads=1, process="subprocess")
    yield judge
    judge.close()


def children():
    """Process ids and states of this process's children."""
    found = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            found[int(status.parent.name)] = fields[0]
    return found


def pid_of(judge):
    return judge._runner._child.pid


def kill_while_thinking(judge, how=signal.SIGKILL):
    """Start a call, kill the child in the middle of it, and return what the call raised."""
    raised: list[BaseException] = []

    def think():
        try:
            judge.compare(PAIRS, ENDLESS)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=think)
    thread.start()
    time.sleep(0.05)
    os.kill(pid_of(judge), how)
    thread.join(20)
    assert not thread.is_alive()
    return raised[0]


def test_a_child_answers_as_this_process_would(judge, files):
    inline = Judge(*files, threads=1)
    assert judge.compare(PAIRS, OPTIONS) == inline.compare(PAIRS, OPTIONS)
    assert judge.score([PAIRS[0][:2]], OPTIONS) == inline.score([PAIRS[0][:2]], OPTIONS)
    assert judge.generate([[5, 6]], n=2, max_tokens=4) == inline.generate([[5, 6]], n=2, max_tokens=4)
    inline.close()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV])
def test_a_killed_child_raises_and_the_next_call_starts_afresh(judge, how):
    """The signals are those of the out-of-memory killer, a failed assertion of llama.cpp, and a bad pointer."""
    expected = judge.compare(PAIRS, OPTIONS)
    error = kill_while_thinking(judge, how)
    assert isinstance(error, JudgeCrashed)
    assert f"signal {how.value}" in str(error)
    assert judge.compare(PAIRS, OPTIONS) == expected


def test_a_child_that_died_between_calls_is_replaced(judge):
    expected = judge.compare(PAIRS, OPTIONS)
    os.kill(pid_of(judge), signal.SIGKILL)
    os.waitid(os.P_PID, pid_of(judge), os.WEXITED | os.WNOWAIT)
    assert judge.compare(PAIRS, OPTIONS) == expected


@pytest.mark.slow
def test_twenty_kills_lose_nothing_and_leak_nothing(judge):
    expected = judge.compare(PAIRS, OPTIONS)
    before, files_open = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        assert isinstance(kill_while_thinking(judge), JudgeCrashed)
        assert judge.compare(PAIRS, OPTIONS) == expected
    assert list(children()) == [pid_of(judge)]
    assert children()[pid_of(judge)] != "Z"
    assert threading.active_count() == before
    assert len(os.listdir("/proc/self/fd")) == files_open


def test_closing_leaves_no_process_behind(files):
    judge = Judge(*files, threads=1, process="subprocess")
    pid = pid_of(judge)
    assert pid in children()
    judge.close()
    judge.close()
    assert pid not in children()
    with pytest.raises(JudgeError, match="closed"):
        judge.compare(PAIRS)


def test_a_forgotten_judge_leaves_no_process_behind(files):
    judge = Judge(*files, threads=1, process="subprocess")
    pid = pid_of(judge)
    del judge
    assert pid not in children()


def test_a_child_ends_with_its_parent(files, tmp_path):
    script = judge_script(
        files,
        "print(judge._runner._child.pid, flush=True); import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        tmp_path,
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    orphan = Path(f"/proc/{int(done.stdout)}")
    until = time.monotonic() + 10
    while orphan.exists() and "Z" not in (orphan / "stat").read_text().split()[2] and time.monotonic() < until:
        time.sleep(0.05)
    assert not orphan.exists() or (orphan / "stat").read_text().split()[2] == "Z"


def test_errors_of_the_child_arrive_as_they_are(tmp_path, llama_files):
    path = write_tiny_gguf(tmp_path / "x.gguf", architecture="nonsense")
    with pytest.raises(BundleError, match="cannot load"):
        Judge(path, llama_files[1], process="subprocess")
    assert [state for state in children().values() if state == "Z"] == []


def test_a_deadline_holds_in_the_child(judge):
    judgements = judge.compare(
        PAIRS, JudgeOptions(votes=32, thinking_tokens=15_000, adaptive=False, temperature=0.0, deadline=0.2)
    )
    assert all(not j.complete for j in judgements)
    assert judge.compare(PAIRS, OPTIONS)[0].complete


def test_a_deadline_counts_the_wait_behind_another_call(judge):
    slow = JudgeOptions(votes=32, thinking_tokens=15_000, adaptive=False, temperature=0.0, deadline=2.0)
    first = threading.Thread(target=lambda: judge.compare(PAIRS, slow))
    first.start()
    while not judge._runner._lock.locked():
        time.sleep(0.01)
    (waiting,) = judge.compare(PAIRS[:1], JudgeOptions(deadline=0.05))
    assert first.is_alive()
    assert (waiting.complete, waiting.votes) == (False, ())
    first.join()
    assert judge.compare(PAIRS, OPTIONS)[0].complete


@pytest.mark.parametrize("pairs", [PAIRS, PAIRS * 300])
def test_a_stopped_child_does_not_outlive_a_deadline(judge, monkeypatch, pairs):
    """A stopped child does not read either. The longer request does not fit into the pipe, so writing it blocks."""
    monkeypatch.setattr(worker, "GRACE_SECONDS", 0.5)
    expected, stopped = judge.compare(PAIRS, OPTIONS), pid_of(judge)
    os.kill(stopped, signal.SIGSTOP)
    with pytest.raises(JudgeCrashed, match=r"no answer in \d s, killed"):
        judge.compare(pairs, JudgeOptions(votes=8, thinking_tokens=4, deadline=0.5))
    assert stopped not in children()
    assert judge.compare(PAIRS, OPTIONS) == expected


def test_a_child_stopped_in_the_middle_of_a_thought_does_not_outlive_a_deadline(judge, monkeypatch):
    monkeypatch.setattr(worker, "GRACE_SECONDS", 0.5)
    judge.compare(PAIRS, OPTIONS)
    stopped, before = pid_of(judge), threading.active_count()
    threading.Timer(0.3, os.kill, (stopped, signal.SIGSTOP)).start()
    with pytest.raises(JudgeCrashed, match="killed"):
        judge.compare(PAIRS, dataclasses.replace(ENDLESS, deadline=1.0))
    assert judge.compare(PAIRS, OPTIONS)[0].complete
    assert threading.active_count() == before


@pytest.mark.parametrize("deadline", [None, 60.0])
def test_a_child_that_is_only_slow_is_waited_for(judge, monkeypatch, deadline):
    """Without a deadline the wait has no end; with one, it lasts until the deadline and the time of grace are over."""
    monkeypatch.setattr(worker, "GRACE_SECONDS", 0.0)
    expected, pid = judge.compare(PAIRS, OPTIONS), pid_of(judge)
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(0.3, os.kill, (pid, signal.SIGCONT)).start()
    assert judge.compare(PAIRS, dataclasses.replace(OPTIONS, deadline=deadline)) == expected
    assert pid_of(judge) == pid


def test_a_stopped_child_leaves_the_fast_result_where_that_is_the_policy(monkeypatch):
    monkeypatch.setattr(worker, "GRACE_SECONDS", 0.5)
    question, right, wrong = "What is 2 + 3?", "The answer is 5.", "The answer is 41."
    with FastSlowRM.from_pretrained(threads=1, judge="always", judge_process="subprocess", on_judge_crash="fast") as rm:
        fast = rm.compare(question, right, wrong, judge="never")
        os.kill(rm.judge._runner._child.pid, signal.SIGSTOP)
        left = rm.compare(question, right, wrong, deadline=0.5)
        assert (left.winner, left.p_first, left.votes, left.escalated) == (fast.winner, fast.p_first, (), True)
        assert rm.compare(question, right, wrong).votes


def test_eight_threads_share_one_child(judge):
    expected = judge.compare(PAIRS, OPTIONS)
    got = []
    threads = [threading.Thread(target=lambda: got.append(judge.compare(PAIRS, OPTIONS))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [expected] * 8


@pytest.mark.parametrize("process", ["inline", "subprocess"])
def test_a_runtime_built_for_another_cpu_is_explained(llama_files, tmp_path, process):
    """Importing such a runtime kills the process that does so; it must never be the caller's."""
    (tmp_path / "llama_cpp.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    script = judge_script(llama_files, "", tmp_path, process)
    script.write_text(f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n{script.read_text()}")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert message.startswith("fsrm_lite.errors.JudgeUnavailableError: llama-cpp-python was built for another CPU")
    assert "CMAKE_ARGS=-DGGML_NATIVE=OFF pip install" in message


def judge_script(files, body, folder, process="subprocess"):
    """Write a program that opens a judge and runs ``body``, and return its path."""
    path = folder / f"script_{process}.py"
    path.write_text(
        "import signal, sys\n"
        # A shell starts background jobs so that they ignore SIGINT, and their children inherit that.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "from pathlib import Path\n"
        "from helpers.judge import tiny_encoder\n"
        "from fsrm_lite.slow.judge import Judge\nfrom fsrm_lite.types import JudgeOptions\n"
        f"encoder = tiny_encoder(Path({str(folder)!r}), context=20_000)\n"
        f"judge = Judge({str(files[0])!r}, encoder, threads=1, process={process!r})\n"
        f"{body}\n"
    )
    return path


@pytest.mark.parametrize("process", ["inline", "subprocess"])
def test_the_judge_is_quiet(files, tmp_path, process):
    body = "judge.compare([('q', 'a', 'b')]); judge.close()"
    done = subprocess.run(
        [sys.executable, str(judge_script(files, body, tmp_path, process))], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("process", ["inline", "subprocess"])
def test_ctrl_c_in_the_middle_of_a_thought_ends_the_process(files, tmp_path, process):
    body = (
        "print('thinking', flush=True)\n"
        "try:\n"
        "    judge.compare([('q', 'a', 'b')], "
        "JudgeOptions(votes=32, thinking_tokens=15_000, adaptive=False, temperature=0.0))\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    program = started(judge_script(files, body, tmp_path, process))
    assert program.stdout.readline() == "thinking\n"
    time.sleep(0.3)
    assert interrupted(program) == (0, "interrupted\n", "")


@pytest.mark.parametrize("process", ["inline", "subprocess"])
def test_ctrl_c_in_the_middle_of_a_thought_ends_the_command(tmp_path, process):
    path, script = tmp_path / "in.jsonl", tmp_path / "command.py"
    path.write_text("".join(json.dumps(pair_row(pair)) + "\n" for pair in held_out("test", 64)))
    script.write_text(
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from fsrm_lite.cli import main\n"
        f"main(['-v', 'compare', {str(path)!r}, '-o', '-', '--judge', 'always', "
        f"'--judge-process', {process!r}, '--votes', '200'])\n"
    )
    program = started(script)
    while "loading the judge" not in program.stderr.readline():
        assert program.poll() is None
    time.sleep(1.0)
    assert interrupted(program) == (1, "", "\nAborted!\n")


def started(script):
    return subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def interrupted(program):
    """Press Ctrl-C, and return how the program ended.

    It takes a tenth of a second; the limit is longer because the machine may be busy.
    """
    start = time.monotonic()
    program.send_signal(signal.SIGINT)
    out, err = program.communicate(timeout=60)
    seconds = time.monotonic() - start
    assert seconds < 5, f"the process ended {seconds:.1f} s after Ctrl-C"
    return program.returncode, out, err


@pytest.mark.slow
def test_a_call_works_again_after_ctrl_c(files, tmp_path):
    body = (
        "import threading, signal, os\n"
        "threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "try:\n"
        "    judge.compare([('q', 'a', 'b')], "
        "JudgeOptions(votes=32, thinking_tokens=15_000, adaptive=False, temperature=0.0))\n"
        "except KeyboardInterrupt:\n"
        "    print(judge.compare([('q', 'a', 'b')])[0].complete)\n"
    )
    for process in ("inline", "subprocess"):
        done = subprocess.run(
            [sys.executable, str(judge_script(files, body, tmp_path, process))],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (done.returncode, done.stdout) == (0, "True\n")
