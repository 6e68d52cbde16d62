"""Cheap measurements on the calibration split during training.

No text is generated: the model reads each example once, and its next-token predictions tell what it would have written.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen3ForCausalLM

from fsrm_lite.bundle.encoder import PromptEncoder
from fsrm_lite.bundle.manifest import Manifest
from fsrm_lite.models.data import Pair, held_out
from fsrm_lite.models.problems import Problem
from fsrm_lite.models.responses import FORMS, VISIBLE, agrees, claim_of, thought

PAIRS = 256
BATCH = 64


@lru_cache(maxsize=1)
def _pairs() -> list[Pair]:
    return held_out("calibration", PAIRS)


def held_out_checks(model: Qwen3ForCausalLM, tokenizer_path: Path, manifest: Manifest) -> dict[str, float]:
    """Measure a model on pairs that it was not trained on.

    Returns:
        Shares of pairs by name, each in [0, 1]:

        - ``fast``: the chosen response has the higher fast score. The same for pairs with a visible error
          (``fast_visible``), for pairs with an error of reasoning by the form of the rejected response (``fast_bare``
          and so on), and for the half of the pairs whose scores differ most (``fast_top_half``).
        - ``slow_exact``: every token of the reference thought and of its verdict is the model's likeliest next token.
          At temperature 0 the model would then write them itself, so this is a lower bound of the judge's accuracy.
        - ``slow_verdict``: the verdict is right when the model is given the reference thought.
    """
    encoder = PromptEncoder(tokenizer_path, manifest)
    pairs = _pairs()
    margins = _fast_margins(model, encoder, pairs)
    right = margins > 0
    figures = {"fast": float(right.mean())}
    visible = np.array([p.rejected.error in VISIBLE for p in pairs])
    figures["fast_visible"] = float(right[visible].mean())
    for form in FORMS:
        chosen = ~visible & np.array([p.rejected.form == form for p in pairs])
        figures[f"fast_{form}"] = float(right[chosen].mean())
    top = np.abs(margins) >= np.median(np.abs(margins))
    figures["fast_top_half"] = float(right[top].mean())
    exact, verdict = _slow(model, encoder, pairs)
    figures["slow_exact"], figures["slow_verdict"] = float(np.mean(exact)), float(np.mean(verdict))
    return figures


def pick_checks(
    model: Qwen3ForCausalLM, encoder: PromptEncoder, problems: Sequence[Problem], solutions: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Measure the fast score on solutions that the model itself wrote.

    Args:
        model: The model.
        encoder: Its prompts.
        problems: The problems.
        solutions: The same number of solutions, at least one, for each problem.

    Returns:
        ``own_pairs``, the share of a problem's right and wrong solutions of which the right one has the higher score,
        as a mean over problems; ``pick_1``, ``pick_2``, ``pick_4`` and so on, the share of problems for which the first
        so many solutions' highest score belongs to a right one.
    """
    texts = [(problem.question, text) for problem, group in zip(problems, solutions, strict=True) for text in group]
    scores = fast_scores(model, encoder, texts).reshape(len(problems), -1)
    right = np.array(
        [
            [agrees(claim_of(text), problem) for text in group]
            for problem, group in zip(problems, solutions, strict=True)
        ]
    )
    wins = [
        float(np.mean(s[r][:, None] > s[~r][None, :]))
        for s, r in zip(scores, right, strict=True)
        if r.any() and not r.all()
    ]
    figures = {"own_pairs": float(np.mean(wins))}
    n = 1
    while n <= scores.shape[1]:
        best = scores[:, :n].argmax(axis=1)
        figures[f"pick_{n}"] = float(right[np.arange(len(right)), best].mean())
        n *= 2
    return figures


def _fast_margins(model: Qwen3ForCausalLM, encoder: PromptEncoder, pairs: list[Pair]) -> np.ndarray:
    """Return the score logit of each chosen response minus that of the rejected one, float32, shape [n]."""
    texts = [(p.problem.question, r.text) for p in pairs for r in (p.chosen, p.rejected)]
    score = fast_scores(model, encoder, texts)
    return np.asarray(score[0::2] - score[1::2])


def fast_scores(model: Qwen3ForCausalLM, encoder: PromptEncoder, texts: Sequence[tuple[str, str]]) -> np.ndarray:
    """Return the score logit of each question and response, float32, shape [n]."""
    rows = [encoder.pointwise_fast(question, response) for question, response in texts]
    yes, no = (label.id for label in encoder.manifest.labels)
    scores = np.zeros(len(rows), np.float32)
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # so that little is padded
    for start in range(0, len(rows), BATCH):
        chosen = by_length[start : start + BATCH]
        ids, last = _padded([rows[i] for i in chosen], model)
        hidden = model.model(input_ids=ids).last_hidden_state[torch.arange(len(last)), last]
        logits = model.lm_head(hidden).float()
        scores[chosen] = (logits[:, yes] - logits[:, no]).cpu().numpy()
    return scores


def _slow(model: Qwen3ForCausalLM, encoder: PromptEncoder, pairs: list[Pair]) -> tuple[list[bool], list[bool]]:
    """Return for each pair whether thought and verdict are exact, and whether the verdict is right."""
    verdict = encoder.manifest.templates["pairwise_slow"].verdict
    if verdict is None:
        raise ValueError("the pairwise template has no verdict form")
    closing = encoder.encode_template(verdict.close + verdict.prefix)
    rows, starts = [], []
    for i, pair in enumerate(pairs):
        both = (pair.chosen, pair.rejected) if i % 2 == 0 else (pair.rejected, pair.chosen)
        prompt = encoder.pairwise_slow(pair.problem.question, both[0].text, both[1].text)
        text = encoder.encode_text(thought(pair.problem, (both[0].claim, both[1].claim)))
        rows.append([*prompt, *text, *closing, verdict.choice_ids[i % 2]])
        starts.append(len(prompt))
    exact, right = [], []
    for start in range(0, len(rows), BATCH):
        ids, last = _padded(rows[start : start + BATCH], model)
        best = model.lm_head(model.model(input_ids=ids).last_hidden_state).argmax(-1)
        for i, end in enumerate(last.tolist()):
            begin = starts[start + i]
            hits = best[i, begin - 1 : end] == ids[i, begin : end + 1]
            exact.append(bool(hits.all()))
            right.append(bool(hits[-1]))
    return exact, right


def _padded(rows: list[list[int]], model: Qwen3ForCausalLM) -> tuple[torch.Tensor, torch.Tensor]:
    device = next(model.parameters()).device
    ids = torch.zeros((len(rows), max(map(len, rows))), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids.to(device), torch.tensor([len(row) - 1 for row in rows], device=device)
