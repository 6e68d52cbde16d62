"""A small byte-level BPE tokenizer, trained on word problems, with Qwen's rules for splitting and control tokens."""

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
"""The pattern by which Qwen2 and Qwen3 first split text: digits stand alone, a space belongs to the word behind it."""


def train_tokenizer(templates: list[str], seed: int = 0, problems: int = 4000) -> Tokenizer:
    """Return a tokenizer trained on problems, responses, thoughts and the text of the prompt templates.

    As in Qwen3, ``<think>`` and ``</think>`` are single tokens, but are not marked as special.

    Args:
        templates: Text of the prompt templates.
        seed: Seed of the problems.
        problems: Number of problems.
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
    """Yield the texts to train on."""
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
