"""Offline, CPU-only fast/slow reward models.

A reward model says how good a response to a prompt is. This one has a fast half, which reads prompt and response once,
and a slow half (the judge), which thinks in words before it decides and is asked only where the fast half is unsure.

``FastSlowRM.from_pretrained()`` is the way in. Each name below is imported when it is first used (PEP 562), so that
``import fsrm_lite`` is quick and loads neither numpy nor a runtime.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fsrm_lite.bundle.files import Bundle as Bundle
    from fsrm_lite.gate import Gate as Gate
    from fsrm_lite.gate import GateSpec as GateSpec
    from fsrm_lite.loops.critic import HeadCritic as HeadCritic
    from fsrm_lite.loops.critic import RewardCritic as RewardCritic
    from fsrm_lite.loops.gguf_reasoner import GgufReasoner as GgufReasoner
    from fsrm_lite.loops.loop import ReasoningLoop as ReasoningLoop
    from fsrm_lite.loops.reasoners import CallableReasoner as CallableReasoner
    from fsrm_lite.loops.reasoners import EndpointReasoner as EndpointReasoner
    from fsrm_lite.loops.reasoners import SolveReasoner as SolveReasoner
    from fsrm_lite.scorer import FastSlowRM as FastSlowRM
    from fsrm_lite.types import Comparison as Comparison
    from fsrm_lite.types import Score as Score
    from fsrm_lite.types import Selection as Selection

__version__ = "0.1.0"

_WHERE = {
    "Bundle": "bundle.files",
    "CallableReasoner": "loops.reasoners",
    "Comparison": "types",
    "EndpointReasoner": "loops.reasoners",
    "FastSlowRM": "scorer",
    "Gate": "gate",
    "GateSpec": "gate",
    "GgufReasoner": "loops.gguf_reasoner",
    "HeadCritic": "loops.critic",
    "ReasoningLoop": "loops.loop",
    "RewardCritic": "loops.critic",
    "Score": "types",
    "Selection": "types",
    "SolveReasoner": "loops.reasoners",
}

__all__ = [
    "Bundle",
    "CallableReasoner",
    "Comparison",
    "EndpointReasoner",
    "FastSlowRM",
    "Gate",
    "GateSpec",
    "GgufReasoner",
    "HeadCritic",
    "ReasoningLoop",
    "RewardCritic",
    "Score",
    "Selection",
    "SolveReasoner",
    "__version__",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module attribute can be anything
    if name in _WHERE:
        return getattr(import_module(f"fsrm_lite.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'fsrm_lite' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
