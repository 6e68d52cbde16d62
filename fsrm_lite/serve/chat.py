"""OpenAI's ``/v1/chat/completions``, answered by a reasoner, such as a bundle that can solve problems.

The question is the last turn of the user. With ``"stream": true`` the answer comes in server-sent events while it is
written; a reasoner that cannot be watched sends it in one piece when it is finished.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import anyio.to_thread
from starlette.responses import StreamingResponse

from fsrm_lite.bundle.conversation import read_message
from fsrm_lite.errors import ContextOverflowError, FsrmError, InputError
from fsrm_lite.loops.reasoners import Proposal, Sampling, SolveReasoner, Task, task_of
from fsrm_lite.serve import bodies
from fsrm_lite.serve.bodies import RequestError
from fsrm_lite.serve.service import Service, Thinking, thinking
from fsrm_lite.types import Thought

_KNOWN = {
    *("model", "messages", "n", "temperature", "top_p", "max_tokens", "max_completion_tokens", "seed"),
    *("stop", "stream", "stream_options", "user", "metadata", "store", "service_tier", "safety_identifier"),
    *("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "logprobs", "top_logprobs"),
    *("logit_bias", "frequency_penalty", "presence_penalty", "response_format", "modalities", "audio"),
    *("reasoning_effort", "verbosity", "prediction", "web_search_options", "prompt_cache_key", "moderation"),
    *("prompt_cache_options", "prompt_cache_retention"),
}
"""The fields of OpenAI's request. As there, a field of any other name is refused."""

_NOT_OFFERED: dict[str, tuple[Any, ...]] = {
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "tool_choice": ("none", "auto"),
    "web_search_options": (),
}
"""What this server cannot do, with the values that ask for nothing of it. A model that is offered tools calls none."""

MOST_STOPS = 4


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request to answer.

    Attributes:
        task: The question.
        sampling: How to write.
        stops: Texts at which an answer ends; they are no part of it.
        model: The name that the request gives to the model.
    """

    task: Task
    sampling: Sampling
    stops: tuple[str, ...]
    model: str


@dataclass(frozen=True, slots=True)
class _Answers:
    """What the reasoner wrote, cut at the stops; ``reasons`` says per text why it ended, ``prompt_tokens`` may be 0."""

    texts: list[str]
    reasons: list[str]
    tokens: list[int]
    prompt_tokens: int


async def chat_completion(service: Service, body: dict[str, Any]) -> dict[str, Any] | StreamingResponse:
    """Answer a request to ``/v1/chat/completions``.

    Raises:
        RequestError: If the request is malformed, or asks for what is not offered.
        ReasonerError: If the reasoner fails.
    """
    if service.reasoner is None:
        raise RequestError("this model answers no chats: it has no reasoner", status=404, code="not_found")
    service.check_name(body)
    asked = _read(service, body)
    stream = bodies.flag(body, "stream")
    how = thinking(body, "always")
    if stream:
        options = body.get("stream_options")
        if not isinstance(options, dict | None):
            bodies.refuse(("stream_options",), options, "an object")
        with_usage = bool((options or {}).get("include_usage"))
        service.slow.refuse_if_full()
        return StreamingResponse(_events(service, asked, how, with_usage), media_type="text/event-stream")
    answers = await _written(service, asked, how)
    choices = [
        {
            "index": i,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None,
            "finish_reason": reason,
        }
        for i, (text, reason) in enumerate(zip(answers.texts, answers.reasons, strict=True))
    ]
    return _head(asked, "chat.completion") | {"choices": choices, "usage": _usage(answers)}


def _read(service: Service, body: dict[str, Any]) -> _Asked:
    """Return what a request asks, or refuse it."""
    bodies.only(body, _KNOWN)
    for name, harmless in _NOT_OFFERED.items():
        if body.get(name) is not None and body[name] not in harmless:
            raise RequestError(f"{name} is not offered here; leave it out", at=(name,), code="unsupported_parameter")
    messages = _messages(body.get("messages", bodies.MISSING))
    longest = bodies.whole(body, "max_completion_tokens", bodies.whole(body, "max_tokens", 256, 1), 1)
    values: dict[str, Any] = {
        "n": bodies.whole(body, "n", 1, 1, 128),
        "temperature": bodies.number(body, "temperature", 0.8, 0.0),
        "top_p": bodies.number(body, "top_p", 1.0, 0.0),
        "max_tokens": longest,
        "seed": bodies.whole(body, "seed", 0, -(2**63), 2**63),
    }
    try:
        sampling = Sampling(**values)
        task = task_of(messages)
        if isinstance(service.reasoner, SolveReasoner):
            service.reasoner.prompt_ids(task)  # a question that is too long is the request's fault
    except ContextOverflowError as error:
        raise RequestError(str(error), at=("messages",), code="context_length_exceeded") from error
    except InputError as error:
        raise RequestError(str(error), at=("messages",) if "sampling" not in str(error) else ()) from error
    return _Asked(task, sampling, _stops(body.get("stop")), body.get("model") or service.name)


def _stops(given: object) -> tuple[str, ...]:
    listed = [given] if isinstance(given, str) else [] if given is None else given
    fits = isinstance(listed, list) and len(listed) <= MOST_STOPS and all(isinstance(s, str) and s for s in listed)
    if not fits:
        bodies.refuse(("stop",), given, f"a string or up to {MOST_STOPS} of them, none empty")
    return tuple(listed)  # type: ignore[arg-type]


def _messages(given: object) -> list[dict[str, str]]:
    """Return the messages of a request as roles and texts; tool calls have no text and become empty."""
    if not isinstance(given, list) or not given:
        bodies.refuse(("messages",), given, "a list of messages")
    found = []
    for i, message in enumerate(given):
        try:
            read = read_message(message, f"messages[{i}]")
        except InputError as error:
            raise RequestError(str(error), at=("messages", i)) from error
        found.append({"role": read["role"], "content": str(read["content"])})
    return found


async def _written(
    service: Service, asked: _Asked, how: Thinking, queue: asyncio.Queue[list[str]] | None = None
) -> _Answers:
    """Have the answers written in the slow lane, and put what there is so far on the queue."""
    reasoner, loop, sampling = service.reasoner, asyncio.get_running_loop(), asked.sampling
    assert reasoner is not None  # the caller has refused the request otherwise
    so_far = [""] * sampling.n
    stopped = False  # whether all texts were ended at a stop, which may be white space that a proposal does not show

    def seen(thoughts: list[Thought]) -> None:
        for thought in thoughts:
            so_far[thought.vote] = thought.text
        if queue is not None:
            loop.call_soon_threadsafe(queue.put_nowait, list(so_far))

    def write(options: dict[str, Any]) -> list[Proposal]:
        def watch(thoughts: list[Thought]) -> bool:
            nonlocal stopped
            goes_on = options["watch"](thoughts)
            stopped = bool(asked.stops) and all(any(stop in text for stop in asked.stops) for text in so_far)
            return goes_on and not stopped

        return solver.propose([asked.task], sampling, watch=watch)[0]

    if isinstance(reasoner, SolveReasoner):
        solver = reasoner
        proposals = await service.think(how, write, seen)
    else:  # it does not use this server's judge, and nobody knows how long it takes: the thoughts need not wait for it
        other = reasoner
        proposals = (
            await anyio.to_thread.run_sync(lambda: other.propose([asked.task], sampling), limiter=service.chats)
        )[0]
    texts, reasons = [], []
    for proposal in proposals:
        cut = _cut(proposal.text, asked.stops)
        texts.append(cut)
        whole = stopped or proposal.ended or len(cut) < len(proposal.text)
        reasons.append("stop" if whole else "length")
    tokens = [proposal.tokens_generated for proposal in proposals]
    prompt = len(reasoner.prompt_ids(asked.task)) if isinstance(reasoner, SolveReasoner) else 0
    service.metrics.tokens(prompt, sum(tokens))
    return _Answers(texts, reasons, tokens, prompt)


def _cut(text: str, stops: Sequence[str]) -> str:
    """Return a text up to the first of the stops."""
    places = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(places)] if places else text


def _safe(text: str, stops: Sequence[str]) -> str:
    """Return as much of an unfinished text as can be sent: what may become a stop is held back."""
    cut = _cut(text, stops).lstrip()
    longest = max((len(stop) - 1 for stop in stops), default=0)
    held = next((k for k in range(min(longest, len(cut)), 0, -1) if any(s.startswith(cut[-k:]) for s in stops)), 0)
    return cut[: len(cut) - held].rstrip()


async def _events(service: Service, asked: _Asked, how: Thinking, with_usage: bool) -> AsyncIterator[str]:
    """Yield the answer as server-sent events."""
    head = _head(asked, "chat.completion.chunk")
    usage: dict[str, Any] = {"usage": None} if with_usage else {}

    def event(index: int, delta: dict[str, Any], reason: str | None = None) -> str:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return _sse(head | {"choices": [choice]} | usage)

    sent = [""] * asked.sampling.n
    for i in range(asked.sampling.n):
        yield event(i, {"role": "assistant", "content": ""})
    queue: asyncio.Queue[list[str]] = asyncio.Queue()
    writing = asyncio.ensure_future(_written(service, asked, how, queue))
    try:
        while not writing.done():
            getting = asyncio.ensure_future(queue.get())
            await asyncio.wait({getting, writing}, return_when=asyncio.FIRST_COMPLETED)
            if not getting.done():
                getting.cancel()
                break
            for i, text in enumerate(getting.result()):
                safe = _safe(text, asked.stops)
                if safe.startswith(sent[i]) and len(safe) > len(sent[i]):
                    yield event(i, {"content": safe[len(sent[i]) :]})
                    sent[i] = safe
        try:
            answers = await writing
        except FsrmError as error:  # the status has been sent; all that is left is an event
            yield _sse({"error": {"message": str(error), "type": "server_error", "code": None, "param": None}})
            return
        for i, (text, reason) in enumerate(zip(answers.texts, answers.reasons, strict=True)):
            if text[len(sent[i]) :]:
                yield event(i, {"content": text[len(sent[i]) :]})
            yield event(i, {}, reason)
        if with_usage:
            yield _sse(head | {"choices": [], "usage": _usage(answers)})
        yield "data: [DONE]\n\n"
    finally:
        writing.cancel()  # the client has gone: the thought is stopped
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await writing


def _sse(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


def _head(asked: _Asked, kind: str) -> dict[str, Any]:
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time())}
    return head | {"model": asked.model, "system_fingerprint": None}


def _usage(answers: _Answers) -> dict[str, Any]:
    read, written = answers.prompt_tokens, sum(answers.tokens)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
