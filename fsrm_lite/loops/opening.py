"""Reasoners by name, as the command line gives them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fsrm_lite.errors import InputError
from fsrm_lite.loops.gguf_reasoner import GgufReasoner
from fsrm_lite.loops.reasoners import CallableReasoner, EndpointReasoner, Reasoner, SolveReasoner
from fsrm_lite.ranking.answers import load_attribute

if TYPE_CHECKING:
    from fsrm_lite.scorer import FastSlowRM


def open_reasoner(
    spec: str,
    *,
    model: FastSlowRM | None = None,
    template: str | None = None,
    timeout_s: float = 120.0,
    api_key: str | None = None,
) -> Reasoner:
    """Return a reasoner from its name on the command line.

    Args:
        spec: ``"solve"`` (the bundle's own ability to answer questions), ``"model.gguf"`` (a file), ``"http://.../v1"``
            (an endpoint), or ``"package.module:function"`` (a Python function).
        model: The loaded bundle; needed for ``"solve"``.
        template: The prompt's template, only for a GGUF file; see ``GgufReasoner``.
        timeout_s: Longest time for one call of an endpoint or a function, in seconds.
        api_key: Sent to an endpoint as a bearer token; None sends none.

    Raises:
        InputError: If the name is none of these, or a template is given for anything but a GGUF file.
    """
    if spec.lower().endswith(".gguf"):
        return GgufReasoner(spec, template=template)
    if template is not None:
        raise InputError(f"a template is for a GGUF file only; the reasoner is {spec!r}")
    if spec == "solve":
        if model is None:
            raise InputError("the reasoner 'solve' needs a model with a solve template")
        return SolveReasoner(model)
    if spec.startswith(("http://", "https://")):
        return EndpointReasoner(spec, timeout_s=timeout_s, api_key=api_key)
    found = load_attribute(spec, "reasoner", "solve, FILE.gguf, an http address, or package.module:function")
    if not callable(found):
        raise InputError(
            f"reasoner {spec!r} is a {type(found).__name__}, expected a function from a question to a response"
        )
    return CallableReasoner(found, timeout_s=timeout_s)
