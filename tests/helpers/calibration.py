"""Synthetic labelled items of known character, and a stand-in for a model."""

import hashlib
from importlib.util import module_from_spec, spec_from_file_location
from types import SimpleNamespace

import numpy as np

from fsrm_lite.fast.path import EncodedResponse
from fsrm_lite.gate import FastSignals, Gate, GateSpec, intuition_confidence, sigmoid
from fsrm_lite.measure.labelled import LabelledItem
from fsrm_lite.measure.labelled_lists import LabelledList
from fsrm_lite.types import Comparison, Route, Score, Vote
from helpers import ROOT


def load_benchmark(name):
    """A module of benchmarks/, which is no installed package."""
    spec = spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def signal(logit):
    """A fast reading with a score alone."""
    return FastSignals(logit, sigmoid(logit), None, None)


def make_items(count, *, seed=0, sharpness=1.0, base=None, slow=True, prompts=None):
    """Pairs whose fast answer is right with probability sigmoid(sharpness * |margin|), or with probability ``base``."""
    rng = np.random.default_rng(seed)
    items = []
    for i in range(count):
        margin = rng.normal(0.0, 2.5)
        right = rng.random() < (sigmoid(sharpness * abs(margin)) if base is None else base)
        distribution = float(np.clip(np.tanh(abs(margin) / 2) + rng.normal(0, 0.2), 0, 1))
        readings = (FastSignals(margin, sigmoid(margin), distribution, 1.0), FastSignals(0.0, 0.5, 1.0, 1.0))
        outcome = {"slow_correct": bool(rng.random() < 0.96), "slow_tokens": int(rng.integers(40, 120))} if slow else {}
        group = f"p{i % prompts}" if prompts else ""
        items.append(LabelledItem(f"k{seed}-{i}", readings, int((margin > 0) != right), group=group, **outcome))
    return items


def plain(items):
    """Items with the text of each response, whether or not it was encoded."""
    return [tuple(x.text if isinstance(x, EncodedResponse) else x for x in item) for item in items]


def make_lists(count, *, seed=0, sizes=(2, 4, 8), right=None, mixed=False):
    """Lists in which candidates repeat each other and fast scores err; all errors of one list share a cause.

    ``right`` is the chance that a candidate is right; by default it differs from list to list. With ``mixed`` some
    members of the right team are labelled as wrong.
    """
    rng = np.random.default_rng(seed)
    lists = []
    for k in range(count):
        share, shift = rng.beta(2, 1.5) if right is None else right, rng.normal(0.0, 1.0)
        readings, teams, labels, known = [], [], [], {}
        for _ in range(sizes[k % len(sizes)]):
            label = int(rng.random() < share)
            team = 0 if label else 1 + min(int(rng.geometric(0.4)), 9)
            logit = known.setdefault((team, int(rng.integers(3))), shift + (1.5 if label else -1.5) + rng.normal(0, 2))
            readings.append(FastSignals(float(logit), sigmoid(float(logit)), 0.9, 1.0))
            teams.append(team)
            labels.append(label if not mixed or rng.random() < 0.7 else 0)
        lists.append(
            LabelledList(f"l{seed}-{k}", tuple(readings), tuple(teams), tuple(labels), "final", f"p{seed}-{k}")
        )
    return lists


class StandIn:
    """A stand-in for ``FastSlowRM`` with the two methods that evaluation needs.

    It knows the truth from ``quality``, a function of a response. The fast score is the quality plus noise, which grows
    with ``noise``. The judge is always right, but with ``first=True`` it prefers what it is shown first instead.
    """

    def __init__(self, quality, *, noise=0.0, first=False, gate=None, tokens=20, pairs_only=False):
        self.fast = SimpleNamespace(
            reads_responses=not pairs_only, reads_pairs=pairs_only, check_pair=lambda first, second: None
        )
        self.quality, self.noise, self.first, self.tokens = quality, noise, first, tokens
        self.gate = Gate(gate or GateSpec(0.5))
        self.calls = []

    def read(self, prompt, response):
        digest = hashlib.sha256(f"{prompt}|{response}".encode()).digest()[0] / 255 - 0.5
        logit = self.quality(prompt, response) + self.noise * digest
        distribution = intuition_confidence(logit)
        return Score(sigmoid(logit), logit, intuition_confidence(logit), distribution, 1.0, tokens_read=5)

    @property
    def judge(self):
        return self

    def has_room(self, prompt, *responses):
        return True

    def encode(self, prompt, response):
        return EncodedResponse(prompt, response, response, (), None)

    def score_many(self, items, *, judge="auto", votes=None, seed=0):
        items = plain(items)
        self.calls.append(("score", judge, len(items)))
        assert self.fast.reads_responses, "a model that only compares was asked for scores"
        fast = [self.read(*item) for item in items]
        if judge == "never":
            return fast
        return [
            Score(
                float(q > 0),
                50.0 if q > 0 else -50.0,
                s.intuition_confidence,
                s.distribution_confidence,
                1.0,
                Route.SLOW,
                True,
                tokens_generated=10,
            )
            for s, q in zip(fast, (self.quality(*item) for item in items), strict=True)
        ]

    def compare_many(self, items, *, judge="auto", votes=None, seed=0):
        items = plain(items)
        self.calls.append(("compare", judge, len(items)))
        return [self._compare(item, judge) for item in items]

    def _compare(self, item, judge):
        prompt, a, b = item
        scores = (self.read(prompt, a), self.read(prompt, b))
        margin = scores[0].logit - scores[1].logit
        distribution = min(s.distribution_confidence for s in scores)
        fast = Comparison(
            0 if margin >= 0 else 1,
            sigmoid(margin),
            intuition_confidence(margin),
            distribution,
            scores=scores if self.fast.reads_responses else None,
            logit=margin,
            tokens_read=10,
        )
        if judge == "never":
            return fast
        better = 0 if self.quality(prompt, a) >= self.quality(prompt, b) else 1
        winners = (
            (0, 1) if self.first else (better, better)
        )  # positions as the caller gave them; then the swapped order
        votes = tuple(
            Vote(swapped, w, 1.0 - w, "thought", self.tokens // 2)
            for swapped, w in zip((False, True), winners, strict=True)
        )
        p = sum(v.p_first for v in votes) / 2
        return Comparison(
            0 if p >= 0.5 else 1,
            p,
            fast.intuition_confidence,
            distribution,
            Route.SLOW,
            True,
            scores=fast.scores,
            logit=margin,
            votes=votes,
            orders_agree=winners[0] == winners[1],
            tokens_read=30,
            tokens_generated=self.tokens,
        )

    def close(self):
        self.calls.append(("close",))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
