"""The two experiments at small size: on stand-ins always, on the embedded model where it is there."""

import importlib.util
import json
import random
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.loops import FakeRM, readable_model

from fsrm_lite.loops.reasoners import CallableReasoner, Proposal, Sampling
from fsrm_lite.serve.server import make_server

EXAMPLES = ROOT / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def best_of_n():
    return load("best_of_n")


@pytest.fixture(scope="module")
def reasoning_loop():
    return load("reasoning_loop")


class Guesser:
    """A reasoner whose answer is right ("1") with probability 0.4. A right response usually has more ``+``."""

    def __init__(self):
        self.rng = random.Random(0)

    def propose(self, tasks, sampling):
        return [[self._guess(task) for _ in range(sampling.n)] for task in tasks]

    def _guess(self, task):
        if "Is the answer correct?" in task.question:
            return Proposal(self.rng.choice(["yes", "no"]), 1)
        right = self.rng.random() < 0.4
        plus = self.rng.randint(2, 4) if right else self.rng.randint(0, 3)
        return Proposal(
            f"{self.rng.randint(0, 99)} {'+' * plus}. The answer is {1 if right else self.rng.randint(2, 4)}.", 10
        )


class CountingRM(FakeRM):
    """A ``FakeRM`` that can also be read for its hidden state."""

    def __init__(self, folder):
        super().__init__()
        readable = readable_model(folder)
        self.bundle, self.fast, self.encoder = readable.bundle, readable.fast, readable.encoder

    def close(self):
        """Nothing to free."""


def test_best_of_n_tables_and_ceiling(best_of_n, tmp_path, capsys):
    problems = [best_of_n.Problem(f"q{i}", "1") for i in range(60)]
    cells = best_of_n.run(CountingRM(tmp_path), Guesser(), problems, Sampling(n=4), tmp_path / "out")
    by = {(c.strategy, c.n): c.row() for c in cells}
    assert sorted({n for _, n in by}) == [1, 2, 4]
    assert len({by[name, 1]["right"] for name in [*best_of_n.STRATEGIES, "pass@N"]}) == 1
    assert all(by[name, n]["right"] <= by["pass@N", n]["right"] for name in best_of_n.STRATEGIES for n in (1, 2, 4))
    assert by["knockout", 4]["accuracy"] > by["majority", 4]["accuracy"]
    assert by["fast", 4]["tokens"] == 40
    assert by["knockout", 4]["tokens"] == pytest.approx(40 + 7 * by["knockout", 4]["games"])
    assert "| 4 |" in capsys.readouterr().out
    assert (tmp_path / "out" / "best_of_n.png").stat().st_size > 5000
    assert len(json.loads((tmp_path / "out" / "best_of_n.json").read_text())) == len(cells)


def test_best_of_n_against_an_endpoint(best_of_n, tmp_path, capsys, monkeypatch):
    rm, guesser = CountingRM(tmp_path), Guesser()
    server = make_server(rm, reasoner=guesser)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(best_of_n.FastSlowRM, "from_pretrained", lambda source=None: rm)
    questions = tmp_path / "q.jsonl"
    questions.write_text("".join(json.dumps({"question": f"q{i}", "answer": 1}) + "\n" for i in range(5)))
    best_of_n.main(
        [
            "--endpoint",
            f"http://127.0.0.1:{server.server_port}/v1",
            "--questions",
            str(questions),
            "--problems",
            "4",
            "--max-n",
            "2",
        ]
    )
    server.shutdown()
    server.server_close()
    assert "4 problems" in capsys.readouterr().out


def test_best_of_n_silent_and_endless_reasoners(best_of_n, tmp_path):
    rm = CountingRM(tmp_path)
    for text in ("", "x" * 300):
        cells = best_of_n.run(
            rm, CallableReasoner(lambda q, text=text: text), [best_of_n.Problem("q", "1")], Sampling(n=2)
        )
        assert all(c.right == 0 and c.games == 0 for c in cells)


def test_reasoning_loop_critic_beats_plain_and_self_critique(reasoning_loop, tmp_path, capsys):
    problems = [[reasoning_loop.Problem(f"{split}{i}", "1") for i in range(250)] for split in ("learn", "test")]
    methods = reasoning_loop.run(CountingRM(tmp_path), Guesser(), *problems, Sampling(), 4, tmp_path / "out")
    right = {m.name: sum(m.right) for m in methods}
    assert right["DRR, fitted"] > right["plain"] + 20
    assert right["DRR, fitted"] > right["self-critique"]
    names = [m.name.split(",")[0] for m in methods]
    assert names == ["plain", "self-critique", "self-consistency", "DRR", "self-consistency", "DRR"]
    plain = next(m for m in methods if m.name == "plain")
    assert set(plain.written) == {10}
    printed = capsys.readouterr().out
    assert "DRR, fitted - plain: +" in printed
    assert (tmp_path / "out" / "critic" / "critic.onnx").exists()


def test_reasoning_loop_equal_tokens_favour_the_rival(reasoning_loop):
    problems = [reasoning_loop.Problem("q", "1")] * 3
    samples = [[Proposal(f"The answer is {a}.", 10) for a in (2, 1, 1, 3)]] * 3
    loop = reasoning_loop.Figures("x", [True] * 3, [25, 20, 30], [0] * 3, [1] * 3, [True] * 3)
    found = reasoning_loop.at_equal_tokens(loop, samples, problems)
    assert (found.turns, found.written, found.right, found.sure) == ([3] * 3, [30] * 3, [True] * 3, [True] * 3)


def test_tournament_odds_more_games_find_the_best_more_often(capsys):
    odds = load("tournament_odds")
    found = odds.simulate(8, 150, 3.0, 3.0, odds.Gate(odds.GateSpec(intuition_threshold=0.9)))
    hits = {name: hits for name, (hits, _, _) in found.items()}
    games = {name: games for name, (_, games, _) in found.items()}
    assert hits["fast"] < hits["gated"] <= hits["knockout"] + 8
    assert hits["elo, 2n games"] + 8 > hits["knockout"] > hits["fast"]
    assert abs(hits["elo, n-1 games"] - hits["knockout"]) <= 15
    assert (games["fast"], games["knockout"], games["elo, 2n games"], games["elo, all games"]) == (0, 7, 16, 28)
    assert games["gated"] < 3
    odds.main(["--n", "2", "--runs", "20"])
    assert "| 2 |" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["best_of_n", "reasoning_loop"])
def test_examples_run_on_the_embedded_model(name, request, tmp_path, capsys):
    bundle = pytest.importorskip("fsrm_lite.bundle.files")
    models = pytest.importorskip("fsrm_lite.models")
    if not (Path(models.__file__).parent / bundle.EMBEDDED_NAME / "fsrm.json").exists():
        pytest.skip("the embedded model has not been trained yet")
    sizes = {
        "best_of_n": ["--problems", "6", "--max-n", "4"],
        "reasoning_loop": ["--problems", "8", "--distil", "140", "--samples", "2"],
    }[name]
    request.getfixturevalue(name).main([*sizes, "-o", str(tmp_path / "out")])
    assert (tmp_path / "out" / f"{name}.md").read_text().startswith("|")
    assert "%" in capsys.readouterr().out


def published(path, questions=60):
    """Published solutions of sums, by three models of which one is always right."""
    rng = random.Random(0)
    rows = []
    for q in range(questions):
        a, b = rng.randint(1, 9), rng.randint(1, 9)
        row = {"question": f"Mia has {a} pens. Mia finds {b} more. How many pens has Mia on day {q}?"}
        row["ground_truth"] = f"A: {a + b}"
        for name, off in (("one", 0), ("two", rng.randint(0, 3)), ("three", rng.randint(1, 4))):
            row[name] = {"is_correct": not off, "solution": f"{a} + {b} = {a + b + off}.\nA: {a + b + off}"}
        rows.append(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.slow
def test_real_traces_are_read_once_and_measured_on_held_out_questions(tmp_path, capsys, monkeypatch):
    example = load("real_traces")
    path, out = published(tmp_path / "solutions.jsonl"), tmp_path / "out"
    common = [str(path), "-o", str(out), "--threads", "1"]
    with pytest.raises(SystemExit, match="2"):
        example.main([*common, "--folds", "1"])
    assert "--folds is 1, expected at least 2" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="20; give it more --minutes"):
        example.main([*common, "--minutes", "0"])
    example.main(common)
    text = capsys.readouterr().out
    assert "60 questions, 180 traces" in text
    report = json.loads((out / "real_traces.json").read_text())["figures"]
    assert report["pick, pass@N"]["value"] == 1.0
    assert report["AUROC, critic on hidden state and likelihood"]["value"] > 0.7
    found = report["AUROC, critic on pooled states and likelihood"]
    assert 0.7 < found["low"] <= found["value"] <= found["high"]
    assert report["right among the 100% accepted"]["value"] == pytest.approx(report["pick, one at random"]["value"])
    (cache,) = out.glob("read-*.jsonl")
    whole = cache.read_bytes()
    cache.write_bytes(whole[:-40])  # a run that was cut off in the midst of a line
    example.main(common)
    assert sorted(cache.read_bytes().splitlines()) == sorted(whole.splitlines())
    monkeypatch.setattr(example.FollowingReader, "read", None)  # nothing is read a second time
    example.main(common)
    assert json.loads((out / "real_traces.json").read_text())["figures"] == report


def test_telling_the_writers_apart_orders_no_pair_once_they_are_balanced():
    example, rng = load("real_traces"), random.Random(3)
    counts = []
    for _ in range(400):  # the first writer is right in 70 %, the second in 40 %
        labels = [int(rng.random() < share) for share in (0.7, 0.4)]
        group = [example.Trace("q", "5", k, "x", "5", label, 0) for k, label in enumerate(labels)]
        counts.append(example.pairs_in_order(group, [0.9, 0.1], 2))  # the score knows the writer and nothing else
    done, pairs = sum(counts)
    assert done.sum() / pairs.sum() > 0.7
    assert example.balanced(sum(counts)) == pytest.approx(0.5)


def test_ties_of_a_pick_are_drawn_by_lot():
    example = load("real_traces")
    traces = [example.Trace("q", "5", k, "x" * n, a, int(a == "5"), 0) for k, (n, a) in enumerate(((3, "5"), (3, "6")))]
    found = example.picks([*traces, replace(traces[1], response="xxxx", answer=None)], [0.2, 0.9, 0.9])
    assert found["critic"] == 0.0
    assert found["majority"] == pytest.approx(1 / 3)
    assert found["shortest"] == 0.5
    assert found["pass@N"] == 1.0
