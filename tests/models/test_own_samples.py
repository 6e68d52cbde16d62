"""Training on the model's own solutions: labels by answer, pairs of one problem, rounds that resume, Muon's step."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from fsrm_lite.models.data import template_texts, training_manifest
from fsrm_lite.models.problems import make_problem, problems_of
from fsrm_lite.models.responses import agrees, claim_of, labelled, right_response, right_texts, wrong_response
from fsrm_lite.models.tokenizer import train_tokenizer

torch = pytest.importorskip("torch")

from fsrm_lite.models import own_samples, rounds  # noqa: E402 - these import torch
from fsrm_lite.models.muon import Muon, orthogonal  # noqa: E402


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(template_texts(), problems=500).save(str(path))
    return path


@given(st.integers(0, 2**32))
def test_the_claim_of_a_response_is_read_from_its_text(seed):
    rng = random.Random(seed)
    problem = make_problem(rng, "train")
    for response in (right_response(problem, rng), wrong_response(problem, rng)):
        if response.claim:
            assert claim_of(response.text) == response.claim
        assert agrees(claim_of(response.text), problem) == response.correct


@pytest.mark.parametrize(
    ("text", "claim"),
    [
        ("12 + 5 = 17. The answer is 17 pens.", "17 pens"),
        ("The answer is 3. The answer is 4.", "4"),
        ("Ann", "Ann"),
        ("7 cups.", "7 cups"),
        ("12 + 5 = 17. 17 - 3 =", ""),
        ("The answer is 3 of the pens.", ""),
        ("", ""),
    ],
)
def test_a_text_without_a_short_answer_claims_nothing(text, claim):
    assert claim_of(text) == claim


def test_a_right_number_with_a_wrong_unit_is_neither_right_nor_wrong():
    problem = next(p for p in (make_problem(random.Random(i), "train") for i in range(99)) if p.unit == "coins")
    assert labelled(problem, f"The answer is {problem.answer} coins.").correct
    assert labelled(problem, f"The answer is {problem.answer} hats.") is None
    assert not labelled(problem, "The answer is 99 coins.").correct
    assert not labelled(problem, "1 + 1 = 2.").correct


def test_samples_are_read_as_they_were_written_and_repeated_ones_count_once(tmp_path):
    problems = problems_of("train", 3, seed=1)
    assert problems == problems_of("train", 3, seed=1) != problems_of("train", 3, seed=2)
    good = f"The answer is {problems[0].answer}."
    path = tmp_path / "train.jsonl"
    own_samples.write_samples(path, [[good, good, "The answer is 99.", ""], ["The answer is 99."], [], [good]])
    found, unsolved = own_samples.read_samples(path, [*problems, problems[0]])
    assert found.problem == problems[0]
    assert [r.text for r in found.right] == [good]
    assert [r.text for r in found.wrong] == ["The answer is 99."]
    assert unsolved.problem == problems[1]  # what it never solves is learned from the known solutions
    assert unsolved.right
    assert {r.text for r in unsolved.right} <= set(right_texts(problems[1]))
    assert all(r.correct for r in unsolved.right)
    assert own_samples.read_samples(path, [*problems, problems[0]], solved=True) == [found]


def test_only_the_judge_learns_that_an_answer_behind_a_wrong_working_is_right(tmp_path, tokenizer_path):
    (problem,) = problems_of("train", 1, seed=1)
    good = right_texts(problem)[-1]
    odd = f"1 + 1 = 3. The answer is {problem.answer}."
    assert labelled(problem, odd).correct  # by its answer, as the figures count
    own_samples.write_samples(tmp_path / "train.jsonl", [[odd, good, "The answer is 99."]])
    (found,) = own_samples.read_samples(tmp_path / "train.jsonl", [problem])
    assert [r.text for r in found.right] == [good]
    assert [r.text for r in found.odd] == [odd]
    assert [r.text for r in found.wrong] == ["The answer is 99."]
    manifest = training_manifest(Tokenizer.from_file(str(tokenizer_path)))
    maker = own_samples.OwnBatchMaker(tokenizer_path, manifest, 3, 6, [found], 1.0)
    rng = random.Random(0)
    seen = {
        kind: "".join(maker._encoder.decode(e.ids) for _ in range(30) for e in maker._examples(kind, rng))
        for kind in ("fast", "solve", "slow_pair")
    }
    assert {kind: odd in text for kind, text in seen.items()} == {"fast": False, "solve": False, "slow_pair": True}


def test_the_hard_solutions_of_hard_problems_are_drawn_most(tokenizer_path):
    easy, hard = (
        own_samples.Samples(problem, (labelled(problem, f"The answer is {problem.answer}."),), wrong)
        for problem in problems_of("train", 2, seed=1)
        for wrong in [tuple(labelled(problem, f"The answer is {n}.") for n in (97, 99))]
    )
    logits = iter([6.0, -6.0, -6.0, -1.0, 4.0, -4.0])  # of each problem the right one and two wrong ones
    easy, hard = own_samples.weighted([easy, hard], lambda texts: [next(logits) for _ in texts])
    assert easy.weight == pytest.approx(own_samples.EASY_PROBLEM, abs=0.01)
    assert hard.weight == pytest.approx(own_samples.EASY_PROBLEM + 0.5, abs=0.06)  # one of two is above the right one
    rng = random.Random(0)
    drawn = [hard.draw(rng, False).text for _ in range(300)]
    assert drawn.count("The answer is 97.") > 4 * drawn.count("The answer is 99.")
    manifest = training_manifest(Tokenizer.from_file(str(tokenizer_path)))
    hardest = replace(hard, weight=100 * easy.weight)
    maker = own_samples.OwnBatchMaker(tokenizer_path, manifest, 3, 6, [easy, hardest], 1.0)
    for kind in ("fast", "slow_pair"):
        texts = [maker._encoder.decode(maker._examples(kind, rng)[0].ids) for _ in range(100)]
        assert sum(hard.problem.question in text for text in texts) > 90


def test_a_batch_of_own_pairs_has_only_them(tokenizer_path, monkeypatch):
    manifest = training_manifest(Tokenizer.from_file(str(tokenizer_path)))
    problem = make_problem(random.Random(5), "train")
    texts = f"qq The answer is {problem.answer}.", "zz The answer is 99."
    right, wrong = (labelled(problem, text) for text in texts)
    samples = [own_samples.Samples(problem, (right,), (wrong,))]
    maker = own_samples.OwnBatchMaker(tokenizer_path, manifest, 3, 6, samples, 1.0)
    monkeypatch.setattr(own_samples, "BARE_SHARE", 0.0)
    batch = maker.batch(0)
    expected = {
        (*maker._encoder.pointwise_fast(problem.question, r.text), manifest.labels[0 if r.correct else 1].id)
        for r in (right, wrong)
    }
    seen = set()
    for row, column in batch.label_at.tolist():
        whole = tuple(batch.ids[row][: column + 2].tolist())
        seen |= {e for e in expected if whole[-len(e) :] == e} or {whole}
    assert seen == expected
    assert batch.labels.tolist() == [label.id for label in manifest.labels] * (len(batch.labels) // 2)
    plain = own_samples.OwnBatchMaker(tokenizer_path, manifest, 3, 6, samples, 0.0).batch(0)
    assert len(plain.labels) != len(batch.labels)


def test_a_share_of_solved_problems_has_its_own_right_solutions(tokenizer_path):
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    manifest = training_manifest(tokenizer)
    problem = make_problem(random.Random(5), "train")
    right, wrong = (labelled(problem, text) for text in (f"qq The answer is {problem.answer}.", "zz The answer is 99."))
    samples = [own_samples.Samples(problem, (right,), (wrong,))]
    seen = {}
    for share in (0.0, 1.0):
        maker = own_samples.OwnBatchMaker(tokenizer_path, manifest, 3, 6, samples, share)
        rng = random.Random(7)
        found = [maker._examples("solve", rng)[0] for _ in range(20)]
        seen[share] = {tokenizer.decode(example.ids) for example in found}
        assert all(any(example.weights) for example in found)  # it is learned
    assert len(seen[1.0]) == 1
    assert f"qq The answer is {problem.answer}." in next(iter(seen[1.0]))
    assert len(seen[0.0]) > 10
    assert not any("qq" in text or "zz" in text for text in seen[0.0])


@pytest.mark.parametrize("kind", ["fast", "slow_pair"])
def test_a_share_of_own_pairs_shows_answers_alone(kind, tokenizer_path):
    manifest = training_manifest(Tokenizer.from_file(str(tokenizer_path)))
    problem = make_problem(random.Random(5), "train")
    right, wrong = (labelled(problem, text) for text in (f"qq The answer is {problem.answer}.", "zz The answer is 99."))
    samples = [own_samples.Samples(problem, (right,), (wrong,))]
    maker = own_samples.OwnBatchMaker(tokenizer_path, manifest, 3, 6, samples, 1.0)
    rng = random.Random(0)
    texts = [[maker._encoder.decode(example.ids) for example in maker._examples(kind, rng)] for _ in range(400)]
    alone = ["qq" not in "".join(pair) and "zz" not in "".join(pair) for pair in texts]
    assert abs(sum(alone) / len(texts) - own_samples.BARE_SHARE) < 0.06


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([(8, 8), (6, 20), (20, 6)]))
def test_orthogonal_brings_singular_values_near_one(seed, shape):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(seed))
    values = torch.linalg.svdvals(orthogonal(matrices))
    assert values.max() < 1.3
    assert torch.linalg.svdvals(orthogonal(matrices * 1000)) == pytest.approx(values, abs=1e-3)


def test_muon_takes_the_step_of_torchs_own():
    torch.manual_seed(0)
    start = [torch.randn(12, 20), torch.randn(20, 12), torch.randn(12, 20)]
    options = {"lr": 0.01, "weight_decay": 0.1}
    found = []
    for make in (
        lambda p: Muon(p, **options),
        lambda p: torch.optim.Muon(p, adjust_lr_fn="match_rms_adamw", **options),
    ):
        weights = [torch.nn.Parameter(w.clone()) for w in start]
        optimizer = make(weights)
        for _ in range(4):
            optimizer.zero_grad()
            sum((w**3).sum() for w in weights).backward()
            optimizer.step()
        found.append(torch.cat([w.detach().flatten() for w in weights]))
    moved = (found[1] - torch.cat([w.flatten() for w in start])).norm()
    assert (found[0] - found[1]).norm() < 0.02 * moved  # torch's own works in bfloat16


@pytest.mark.slow
def test_an_interrupted_round_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    from fsrm_lite.models.train import PROBE, Settings, Trainer

    start = tmp_path / "start"
    trainer = Trainer(start, Settings(seed=1, steps=1), "cpu", compiled=False)
    trainer.export_ready()
    monkeypatch.setattr(rounds, "SOLUTIONS", 2)
    monkeypatch.setattr(rounds, "CHECK_PROBLEMS", 2)
    monkeypatch.setattr(rounds, "CHECK_SOLUTIONS", 2)
    monkeypatch.setattr(rounds, "ROWS", 2)
    monkeypatch.setattr(rounds, "ROUNDS", (rounds.Round(4, 1e-3, 4),))

    class Plain(Trainer):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options, compiled=False)

    monkeypatch.setattr(rounds, "Trainer", Plain)

    def solved(checkpoint, problems, n, seed, progress=None):
        return [[f"The answer is {p.answer}.", "The answer is 99."][:n] for p in problems]

    monkeypatch.setattr(rounds, "solve", solved)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        rounds.run_round(1, start, tmp_path / "whole", [], 0)
        update, steps = Trainer.update, []

        def stopped(self, batch):
            if self.step == 2 and not steps:
                steps.append(self.step)
                raise KeyboardInterrupt
            return update(self, batch)

        monkeypatch.setattr(Trainer, "update", stopped)
        with pytest.raises(KeyboardInterrupt):
            rounds.run_round(1, start, tmp_path / "halves", [], 0)
        samples = rounds.run_round(1, start, tmp_path / "halves", [], 0)
    finally:
        torch.use_deterministic_algorithms(False)
    assert steps == [2]
    assert len(samples) == 4
    states = [torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("whole", "halves")]
    assert states[0]["step"] == states[1]["step"] == 4
    for part in ("model", "probe"):
        assert all(torch.equal(states[0][part][name], states[1][part][name]) for name in states[0][part])
    begun = torch.load(start / PROBE, weights_only=True)["weight"]
    assert 0 < (states[0]["probe"]["weight"] - begun).abs().max() < 0.05  # the probe goes on from where it was
    metrics = json.loads((tmp_path / "halves" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"own_pairs", "pick_1", "pick_2", "fast", "slow_exact"} <= set(metrics)
    assert np.isfinite(metrics["own_pairs"])
