"""Chooses what the checkpoint and its exported files are to think about, and compares the chains that they write.

A *chain* is a thought and the logits of the verdict behind it. Both sides write chains *greedily*, which means that
they take the likeliest token each time, so that two equal models write the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from fsrm_lite.bundle.encoder import PromptEncoder
from fsrm_lite.bundle.manifest import Manifest
from fsrm_lite.errors import ContextOverflowError
from fsrm_lite.export.parity.calibration_pairs import CalibrationSet
from fsrm_lite.export.parity.measures import VerdictParity
from fsrm_lite.export.parity.readings import TIE_LOGIT, Chain, ChainTask, Ending, Thought
from fsrm_lite.runtimes.onnx.packing import common_length
from fsrm_lite.slow.verdicts import find_close

CHAINS = 60
"""Number of chains: enough to tell an agreement of 98 % from one of 95 %, few enough to write on a CPU."""
PARAMETER_TOKENS = 2e10
"""Parameters of the model x tokens of a thought, at most.

So the longest thought that is measured has this many tokens divided by the number of parameters: 33 tokens for 0.6 B.
"""
MIN_THOUGHT = 16
"""Tokens that a thought may have at least, however large the model is."""
MAX_THOUGHT = 256
"""Tokens that a thought may have at most, however small the model is and however long it may think otherwise."""


def chain_tasks(data: CalibrationSet, encoder: PromptEncoder, budget: int, near_tie: float) -> list[ChainTask]:
    """Choose up to ``CHAINS`` prompts, spread over the data and over the slow templates that the manifest has.

    Args:
        data: What the export is measured on.
        encoder: Makes prompts of it, by the manifest.
        budget: Most tokens of a thought.
        near_tie: Two tokens tie if their logits are closer than this.

    Returns:
        The prompts, each with the way in which its thought ends.
    """
    names = [name for name in ("pairwise_slow", "pointwise_slow") if name in encoder.manifest.templates]
    count = -(-CHAINS // len(names)) if names else 0
    return [task for name in names for task in _tasks_of(name, data, encoder, (budget, near_tie), count)]


def _tasks_of(
    name: str, data: CalibrationSet, encoder: PromptEncoder, limits: tuple[int, float], count: int
) -> list[ChainTask]:
    """Return up to ``count`` prompts of one template, spread over the data; those that do not fit are left out."""
    verdict = encoder.manifest.templates[name].verdict
    if verdict is None:
        return []
    tail = tuple(encoder.encode_template(verdict.close + verdict.prefix))
    stop_ids = frozenset({*encoder.manifest.stop_ids, *tail[:1]})
    ending = Ending(stop_ids, tail, verdict.choice_ids, *limits, close=verdict.close)
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
    """Return the length of the longest thought to measure, in tokens."""
    affordable = max(MIN_THOUGHT, int(PARAMETER_TOKENS / parameters))
    return min(manifest.limits.thinking_tokens, affordable, MAX_THOUGHT)


def closed_share(tasks: Sequence[ChainTask], chains: Sequence[Chain], encoder: PromptEncoder) -> float:
    """Return the share of thoughts that the model ended by the declared close, whatever its tokens are."""
    return _share(
        chain.closed or find_close(encoder.decode(list(chain.thought.ids)), task.ending.close) is not None
        for task, chain in zip(tasks, chains, strict=True)
    )


def compare_chains(
    want: Sequence[Chain],
    have: Sequence[Chain],
    given: Sequence[Chain],
    budget: int,
    near_tie: float = TIE_LOGIT,
    *,
    closed: float,
) -> VerdictParity:
    """Measure chains of a file against the checkpoint's.

    Args:
        want: The checkpoint's own chains.
        have: The file's own chains for the same tasks.
        given: The checkpoint's thoughts with the file's verdicts behind them.
        budget: Most tokens that a thought was allowed.
        near_tie: Two choices tie if the checkpoint's logits for them are closer than this.
        closed: Share of the checkpoint's thoughts that it ended by the declared close; see ``closed_share``.

    Returns:
        How often thoughts and verdicts agree.
    """
    own = [(w, h) for w, h in zip(want, have, strict=True) if not parted_at_tie(w.thought, h.thought)]
    same_thought = list(zip(want, given, strict=True))
    thoughts = [(w.thought.ids, h.thought.ids) for w, h in zip(want, have, strict=True)]
    parted = [common_length(a, b) for a, b in thoughts if a != b]
    return VerdictParity(
        chains=len(want),
        parted_at_ties=len(want) - len(own),
        verdicts_alike=_share(_same_verdict(w, h, near_tie) for w, h in own),
        thoughts_alike=_share(a == b for a, b in thoughts),
        given_thought_alike=_share(_same_verdict(w, g, near_tie) for w, g in same_thought),
        max_delta_p=max(abs(w.probability(w.verdict) - g.probability(w.verdict)) for w, g in same_thought),
        thinking_tokens=budget,
        near_tie_verdicts=sum(_margin(w) < near_tie for w in want),
        all_given_thought_alike=_share(w.verdict == g.verdict for w, g in same_thought),
        verdict_noise=sum(abs(_margin(w) - _margin(g, w.verdict)) for w, g in same_thought) / max(len(want), 1),
        parted_at=float(median(parted)) if parted else None,
        thoughts_ended=closed,
        choices_follow=_share(w.chooses for w in want),
    )


def parted_at_tie(want: Thought, have: Thought) -> bool:
    """Return whether the first token that differs is one that the checkpoint found as likely as its own.

    Then the two thoughts part by chance, and nothing can be said of what stands behind.
    """
    step = common_length(want.ids, have.ids)
    if want.ids == have.ids or step >= len(want.ties):
        return False
    # Where one of the thoughts ended, its token at this step is a stop id, which is not kept. Any tie counts then.
    return have.ids[step] in want.ties[step] if step < len(have.ids) else len(want.ties[step]) > 1


def _same_verdict(want: Chain, have: Chain, near_tie: float) -> bool:
    return (
        want.verdict == have.verdict or want.choice_logits[want.verdict] - want.choice_logits[have.verdict] < near_tie
    )


def _margin(chain: Chain, choice: int | None = None) -> float:
    """Return the logit of a choice, by default the verdict's, less that of the best other one."""
    choice = chain.verdict if choice is None else choice
    return chain.choice_logits[choice] - max(x for i, x in enumerate(chain.choice_logits) if i != choice)


def _share(alike: Iterable[bool]) -> float:
    values = list(alike)
    return sum(values) / len(values) if values else 1.0
