"""The reasoner that talks HTTP, against llama.cpp's real server: sampling, best of N, distillation, the loop."""

import importlib.util
import json
import sys

import pytest
from click.testing import CliRunner
from helpers import ROOT
from helpers.server import llama_server, with_chat_template

from fsrm_lite.cli import main
from fsrm_lite.errors import ReasonerError
from fsrm_lite.loops.critic import RewardCritic
from fsrm_lite.loops.loop import LoopOutcome, ReasoningLoop
from fsrm_lite.loops.reasoners import EndpointReasoner, Sampling, Task
from fsrm_lite.ranking.answers import agrees, final

for package in ("fastapi", "uvicorn", "sse_starlette", "starlette_context", "pydantic_settings"):
    pytest.importorskip(package, reason="llama.cpp's server needs pip install 'llama-cpp-python[server]'")

BEST_OF_N = ROOT / "examples" / "best_of_n.py"


@pytest.fixture(scope="module")
def address(rm, tmp_path_factory):
    model = with_chat_template(rm.bundle.path("slow"), tmp_path_factory.mktemp("server") / "chat.gguf")
    with llama_server(model) as url:
        yield url


@pytest.fixture(scope="module")
def questions(pairs, tmp_path_factory):
    path = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    path.write_text(
        "".join(json.dumps({"question": p.problem.question, "answer": p.problem.answer}) + "\n" for p in pairs[:3])
    )
    return path


def test_samples_are_real_answers_and_every_token_is_billed(address, pairs):
    asked = [Task(p.problem.question) for p in pairs[:8]]
    groups = EndpointReasoner(address).propose(asked, Sampling(n=1, temperature=0.0, max_tokens=96))
    right = sum(agrees(group[0].text, p.problem.answer, final) for group, p in zip(groups, pairs[:8], strict=True))
    assert right >= 4  # greedy, the embedded model solves about three quarters of its problems
    assert all(len(group) == 1 and 3 < group[0].tokens_generated <= 96 for group in groups)


def test_seeds_repeat_and_samples_differ(address, pairs):
    reasoner, tasks = EndpointReasoner(address), [Task(p.problem.question) for p in pairs[:8]]
    first, again = (reasoner.propose(tasks, Sampling(n=4, temperature=1.5, max_tokens=48, seed=5)) for _ in range(2))
    assert first == again
    assert max(len({p.text for p in group}) for group in first) > 1


def test_a_rejected_answer_is_told_in_the_conversation(address, pairs):
    task = Task(pairs[0].problem.question, ("The answer is 3 pens.",))
    assert EndpointReasoner(address).propose([task], Sampling(max_tokens=8))[0][0].text


def test_a_request_the_server_refuses_fails_at_once(address):
    with pytest.raises(ReasonerError, match=r"failed after 1 tries.*400"):
        EndpointReasoner(address).propose([Task("7 pens and " * 400)], Sampling())


def test_best_of_n(address, questions, rm, capsys, monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("example_best_of_n", BEST_OF_N)
    example = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = example
    spec.loader.exec_module(example)
    monkeypatch.setattr(example.FastSlowRM, "from_pretrained", lambda source=None: rm)
    monkeypatch.setattr(rm, "close", lambda: None)
    example.main(["--endpoint", address, "--questions", str(questions), "--max-n", "4", "-o", str(tmp_path)])
    cells = {(c["strategy"], c["n"]): c for c in json.loads((tmp_path / "best_of_n.json").read_text())}
    assert sorted({n for _, n in cells}) == [1, 2, 4]
    assert cells["pass@N", 4]["problems"] == 3
    assert "| 4 |" in capsys.readouterr().out


def test_distill(address, questions, tmp_path):
    out = tmp_path / "traces.jsonl"
    arguments = [
        "distill",
        str(questions),
        "--reasoner",
        address,
        "-o",
        str(out),
        "--samples",
        "2",
        "--max-tokens",
        "96",
        "--json",
    ]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["written"] == 6
    assert all(json.loads(line)["tokens_generated"] > 0 for line in out.read_text().splitlines())


def test_the_loop_with_the_reward_model_as_critic(address, pairs, rm):
    loop = ReasoningLoop(
        EndpointReasoner(address), RewardCritic(rm, judge="never"), max_turns=2, sampling=Sampling(max_tokens=96)
    )
    results = loop.run_many([p.problem.question for p in pairs[:2]])
    assert {r.outcome for r in results} <= {LoopOutcome.ACCEPTED, LoopOutcome.BEST}
    assert all(r.tokens_generated > 0 and r.response for r in results)
