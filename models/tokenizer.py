"""A small byte-level BPE tokenizer with Qwen's split and control tokens, trained on the domain's own text."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from fsrm_lite.models.problems import make_problem
from fsrm_lite.models.responses import right_response, thought, wrong_response

VOCAB_SIZE = 1024
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
THINKING = ("<think>", "</think>")
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen2's and Qwen3's pre-tokenizer pattern: single digits, a space goes with the word behind it."""


def train_tokenizer(templates: list[str], seed: int = 0, problems: int = 4000) -> Tokenizer:
    """Train on ``problems`` problems with responses and thoughts, and on the text of the prompt templates.

    As in Qwen3, ``<think>`` and ``</think>`` are added tokens that are not flagged special.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(CONTROL) - len(THINKING),
        min_frequency=5,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(templates, seed, problems), trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in CONTROL])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in THINKING])
    return tokenizer


def _corpus(templates: list[str], seed: int, problems: int) -> Iterator[str]:
    rng = random.Random(seed)
    for _ in range(problems):
        problem = make_problem(rng, "train")
        right, wrong = right_response(problem, rng), wrong_response(problem, rng)
        yield problem.question
        yield right.text
        yield wrong.text
        yield thought(problem, (right.claim, wrong.claim))
        yield thought(problem, (wrong.claim,))
        yield from templates
