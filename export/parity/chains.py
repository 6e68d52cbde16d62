"""Greedy chains of thought, the same way from checkpoint and GGUF, so that their verdicts can be compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fsrm_lite.bundle.encoder import PromptEncoder
from fsrm_lite.bundle.manifest import Manifest
from fsrm_lite.errors import ContextOverflowError
from fsrm_lite.export.parity.calibration_pairs import CalibrationSet
from fsrm_lite.export.parity.measures import VerdictParity
from fsrm_lite.export.parity.readings import TIE_LOGIT, Chain, ChainTask, Ending, Thought

CHAINS = 60
"""Enough to tell 98 % from 95 %, few enough to generate on a CPU."""
PARAMETER_TOKENS = 2e10
"""Parameters x tokens per chain: the longest thought measured is this over the model's size, 33 tokens for 0.6 B."""
MIN_THOUGHT = 16


def chain_tasks(data: CalibrationSet, encoder: PromptEncoder, budget: int) -> list[ChainTask]:
    """Choose up to ``CHAINS`` prompts, spread over the data and over the slow templates that the manifest has."""
    names = [name for name in ("pairwise_slow", "pointwise_slow") if name in encoder.manifest.templates]
    return [task for name in names for task in _tasks_of(name, data, encoder, budget, -(-CHAINS // len(names)))]


def _tasks_of(name: str, data: CalibrationSet, encoder: PromptEncoder, budget: int, count: int) -> list[ChainTask]:
    verdict = encoder.manifest.templates[name].verdict
    if verdict is None:
        return []
    tail = tuple(encoder.encode_template(verdict.close + verdict.prefix))
    ending = Ending(frozenset({*encoder.manifest.stop_ids, *tail[:1]}), tail, verdict.choice_ids, budget)
    jobs = data.triples() if name == "pairwise_slow" else list(data.items)
    tasks: list[ChainTask] = []
    for job in jobs[:: max(1, len(jobs) // count)]:
        try:
            prompt = tuple(encoder.pairwise_slow(*job) if len(job) == 3 else encoder.pointwise_slow(*job))
        except ContextOverflowError:
            continue
        if len(prompt) + ending.tokens <= encoder.manifest.limits.context:
            tasks.append(ChainTask(prompt, ending))
    return tasks[:count]


def thought_budget(manifest: Manifest, parameters: int) -> int:
    """Longest thought to measure, in tokens."""
    return min(manifest.limits.thinking_tokens, max(MIN_THOUGHT, int(PARAMETER_TOKENS / parameters)))


def compare_chains(want: Sequence[Chain], have: Sequence[Chain], given: Sequence[Chain], budget: int) -> VerdictParity:
    """Measure chains of a file against the checkpoint's.

    Args:
        want: The checkpoint's own chains.
        have: The file's own chains, the same tasks.
        given: The file's verdicts behind the checkpoint's thoughts.
        budget: Longest thought that was allowed.
    """
    own = [(w, h) for w, h in zip(want, have, strict=True) if not parted_at_tie(w.thought, h.thought)]
    same_thought = list(zip(want, given, strict=True))
    return VerdictParity(
        chains=len(want),
        parted_at_ties=len(want) - len(own),
        verdicts_alike=_share(_same_verdict(w, h) for w, h in own),
        thoughts_alike=_share(w.thought.ids == h.thought.ids for w, h in zip(want, have, strict=True)),
        given_thought_alike=_share(_same_verdict(w, g) for w, g in same_thought),
        max_delta_p=max(abs(w.probability(w.verdict) - g.probability(w.verdict)) for w, g in same_thought),
        thinking_tokens=budget,
    )


def parted_at_tie(want: Thought, have: Thought) -> bool:
    """Whether the first token that differs is one that the checkpoint held as likely as its own."""
    step = next(
        (i for i, (a, b) in enumerate(zip(want.ids, have.ids, strict=False)) if a != b),
        min(len(want.ids), len(have.ids)),
    )
    if want.ids == have.ids or step >= len(want.ties):
        return False
    # Where one of them ended, the token is the stop id, which is not kept: any tie at that step will do.
    return have.ids[step] in want.ties[step] if step < len(have.ids) else len(want.ties[step]) > 1


def _same_verdict(want: Chain, have: Chain) -> bool:
    return (
        want.verdict == have.verdict or want.choice_logits[want.verdict] - want.choice_logits[have.verdict] < TIE_LOGIT
    )


def _share(alike: Iterable[bool]) -> float:
    values = list(alike)
    return sum(values) / len(values) if values else 1.0
