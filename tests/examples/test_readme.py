"""The code in examples/README.md runs as it is written, but for the addresses of servers."""

import json
import re
import threading
import urllib.request
from types import SimpleNamespace

import pytest
from helpers import ROOT

from fsrm_lite import FastSlowRM, SolveReasoner
from fsrm_lite.loops.distill import distill, read_traces
from fsrm_lite.loops.reasoners import Sampling, Task
from fsrm_lite.serve.server import make_server

TEXT = (ROOT / "examples" / "README.md").read_text("utf-8")
SECTIONS = {section.split("\n")[0]: section for section in TEXT.split("\n## ")}
QUESTION = "Mia has 7 pens. Mia finds 8 more. How many pens does Mia have now?"


def code(title):
    return "\n".join(re.findall(r"```python\n(.*?)```", SECTIONS[title], re.DOTALL))


@pytest.fixture
def served(rm):
    """An endpoint that solves, on a free port."""
    server = make_server(rm, reasoner=SolveReasoner(rm), names=["default"])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def one_model(rm, monkeypatch):
    monkeypatch.setattr(FastSlowRM, "from_pretrained", lambda source=None: rm)


def test_sampling_loop(rm, capsys):
    reasoner = SolveReasoner(rm)
    exec(
        code("Best of N"),
        {"question": QUESTION, "my_model": lambda q: reasoner.propose([Task(q)], Sampling())[0][0].text},
    )
    assert "15" in capsys.readouterr().out


@pytest.mark.slow
def test_reasoning_loop(rm, served, pairs, tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    from fsrm_lite.export.critic_head import fit_critic
    from fsrm_lite.models.data import held_out

    rows = [{"question": p.problem.question, "answer": p.problem.answer} for p in held_out("calibration", 120)]
    distill(rows, SolveReasoner(rm), tmp_path / "traces.jsonl", sampling=Sampling(n=2, temperature=1.0, max_tokens=64))
    with (tmp_path / "traces.jsonl").open(encoding="utf-8") as file:
        fit_critic(read_traces(file), rm, tmp_path / "critic")
    monkeypatch.chdir(tmp_path)
    exec(code("A critic in the reasoning loop (DRR)").replace("http://127.0.0.1:8080", served), {"question": QUESTION})
    outcome, *_, turns, tokens = capsys.readouterr().out.split()
    assert outcome in ("accepted", "abstained")
    assert 1 <= int(turns) <= 4 <= int(tokens)


def test_training():
    trainer = {"GRPOTrainer": SimpleNamespace, "policy": None, "prompts": [], "config": None}
    exec(code("Training against it"), trainer)
    rewards = trainer["trainer"].reward_funcs(prompts=[QUESTION] * 2, completions=["The answer is 15 pens.", ""])
    assert 0 < rewards[0] <= 1
    assert rewards[1] == 0


def test_http(capsys):
    names = {}
    exec(code("Over HTTP").replace("port=8080", "port=0").replace("server.serve_forever()", ""), names)
    server = names["server"]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    body = re.search(r"--json '(.*?)'", SECTIONS["Over HTTP"]).group(1).encode()
    address = f"http://127.0.0.1:{server.server_port}/rerank"
    with urllib.request.urlopen(urllib.request.Request(address, body, {"content-type": "application/json"})) as reply:
        results = json.load(reply)["results"]
    server.shutdown()
    server.server_close()
    assert sorted(r["index"] for r in results) == [0, 1]
