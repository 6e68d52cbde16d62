"""Stand-ins for the loops' tests: a reward model without files that knows which responses are right."""

import zlib
from types import SimpleNamespace

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from fsrm_lite.bundle.encoder import PromptEncoder
from fsrm_lite.bundle.manifest import FileEntry, Label, Limits, Manifest, Template
from fsrm_lite.errors import ContextOverflowError, InputError
from fsrm_lite.gate import Gate, GateSpec, sigmoid
from fsrm_lite.ranking.tournament import select
from fsrm_lite.runtimes.reading import FastReading
from fsrm_lite.types import Comparison, Route, Score


class FakeRM:
    """Scores a response by the number of ``+`` in it; refuses what is empty or longer than 200 characters."""

    def __init__(self):
        self.calls = []
        self.gate = Gate(GateSpec())
        self.bundle = SimpleNamespace(root="/bundle", manifest=SimpleNamespace(name="fake"))

    def score_many(self, items, *, judge="auto"):
        self.calls.append(("score", len(items), judge))
        for _, response in items:
            if not response.strip():
                raise InputError("the response is empty")
            if len(response) > 200:
                raise ContextOverflowError("too long")
        return [self._score(response) for _, response in items]

    def compare_many(self, items, *, judge="auto"):
        self.calls.append(("compare", len(items), judge))
        if any(not a.strip() or not b.strip() for _, a, b in items):
            raise InputError("the response is empty")
        return [
            Comparison(0 if a.count("+") >= b.count("+") else 1, 0.5, 0.5, 0.5, route=Route.SLOW, tokens_generated=7)
            for _, a, b in items
        ]

    def best_of_n(self, prompt, responses, strategy="gated"):
        scores = [self._score(r) for r in responses]
        return select(
            strategy,
            scores,
            responses,
            self.gate,
            lambda pairs: self.compare_many([(prompt, responses[a], responses[b]) for a, b in pairs]),
        )

    @staticmethod
    def _score(response):
        logit = float(response.count("+") - 1)
        return Score(sigmoid(logit), logit, 0.5, 0.9, 1.0, tokens_read=10)


def load_fake(source=None, **options):
    """Replaces ``FastSlowRM.from_pretrained`` in the adapters."""
    rm = FakeRM()
    rm.bundle.root = source or "/embedded"
    return rm


class CountingFast:
    """A fast model whose hidden state is the number of ``+`` tokens and seven entries of noise made from the text."""

    reads_responses = True

    def __init__(self, plus_id):
        self.plus_id = plus_id

    def readings(self, sequences, *, hidden=False):
        readings = []
        for ids in sequences:
            state = np.random.default_rng(zlib.crc32(str(list(ids)).encode())).normal(size=8).astype(np.float32)
            state[0] = list(ids).count(self.plus_id)
            readings.append(FastReading((float(state[1]), 0.0), 5.0, 1.0, len(ids), 0, state if hidden else None))
        return readings


def readable_model(folder, context=400):
    """A reward model with a real tokenizer and prompts, whose fast model is a ``CountingFast``."""
    tokenizer = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
    )
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    manifest = Manifest(
        name="counting",
        labels=(Label("Y", 5, 1.0), Label("N", 6, 0.0)),
        templates={"pointwise_fast": Template("{prompt}\n{response}\n"), "solve": Template("{prompt}\n")},
        special_tokens={},
        stop_ids=(0,),
        limits=Limits(context, 16),
        vocab_size=256,
        files={"fast": FileEntry("fast.onnx", 1, "ab" * 32)},
    )
    bundle = SimpleNamespace(root=folder, manifest=manifest, path=lambda role: path, judge=lambda: bundle)
    fast = CountingFast(tokenizer.token_to_id("+"))
    encoder = PromptEncoder(path, manifest)
    return SimpleNamespace(
        bundle=bundle,
        fast=fast,
        encoder=encoder,
        judge_engine=SimpleNamespace(engine="onnx"),
        judge_encoder=encoder,
        close=lambda: None,
    )
