"""The page at ``/``, what it asks about the bundle, and the stream of events that it shows.

The page is one file without anything from elsewhere. Its policy lets the browser load nothing but the page itself and
answers of this server, so that no text that someone pastes into it can make it do anything else.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from typing import Any

from starlette.responses import StreamingResponse

from fsrm_lite.errors import FsrmError, InputError, MisuseError
from fsrm_lite.ranking.tournament import team_key
from fsrm_lite.serve import bodies
from fsrm_lite.serve.bodies import RequestError
from fsrm_lite.serve.service import Service, Thinking, strategy_of, thinking
from fsrm_lite.types import Comparison, Prompt, Score, Selection, Thought


@cache
def html() -> str:
    """Return the page."""
    return files("fsrm_lite.serve").joinpath("page.html").read_text("utf-8")


@cache
def headers() -> dict[str, str]:
    """Return the headers of the page. Its policy names its one script by its hash, so that no other runs in it."""
    script = html().split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return {
        "content-security-policy": f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }


def about(service: Service) -> dict[str, Any]:
    """Return what the page shows of the bundle: its name, gate, judge, figures, and the calibration if there is one."""
    manifest = service.model.bundle.manifest
    slow = service.model.bundle.judge()
    can_think = service.model.can_think and "pairwise_slow" in slow.manifest.templates
    return {
        "name": manifest.name,
        "judge": service.judge,
        "can_think": can_think,
        "gate": service.model.gate.spec.to_dict(),
        "votes": slow.manifest.judge.votes,
        "context": manifest.limits.context,
        "labels": [label.text for label in manifest.labels],
        "figures": (manifest.card.get("evaluation") or {}).get("figures"),
        "golden": (manifest.card.get("golden") or [])[:4],
        "calibration": service.calibration,
    }


async def best_of_n(service: Service, body: dict[str, Any]) -> dict[str, Any] | StreamingResponse:
    """Answer ``/v1/best-of-n``, this server's own: ``prompt``, ``responses``, ``strategy``, and ``stream`` for events.

    The reply is what ``FastSlowRM.best_of_n`` returns, as JSON. The events are ``scores`` (fast scores, and whom the
    gate cannot tell from the best), ``thought`` (what has been written of a vote so far), ``match`` (a comparison),
    ``result`` (the reply), or ``error``.
    """
    service.check_name(body)
    prompt = body.get("prompt", bodies.MISSING)
    if not isinstance(prompt, str | list) or not prompt or (isinstance(prompt, str) and not prompt.strip()):
        bodies.refuse(("prompt",), prompt, "some text, or a list of messages")
    responses = bodies.texts(body, "responses", most=service.limits.documents)
    how, strategy = thinking(body, service.judge), strategy_of(body)
    if bodies.flag(body, "stream"):
        if how.judge != "never":
            service.slow.refuse_if_full()
        events = _events(service, prompt, responses, how, strategy)
        return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-store"})
    selection = await service.best_of(prompt, responses, how, strategy=strategy)
    usage = {"input_tokens": selection.tokens_read, "output_tokens": selection.tokens_generated}
    return selection.to_dict() | {"usage": usage}


async def _events(
    service: Service, prompt: Prompt, responses: list[str], how: Thinking, strategy: str
) -> AsyncIterator[str]:
    """Yield what happens as server-sent events."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[str] = asyncio.Queue()
    shown: dict[tuple[Any, ...], str] = {}

    def put(event: str, data: dict[str, Any]) -> None:
        loop.call_soon_threadsafe(queue.put_nowait, f"event: {event}\ndata: {json.dumps(data)}\n\n")

    def on_scores(scores: list[Score]) -> None:
        put("scores", _fast_part(service, responses, scores))

    def on_thought(pair: tuple[int, int], thought: Thought) -> None:
        key = (pair, thought.vote)
        if shown.get(key) != thought.text:
            shown[key] = thought.text
            told = {"vote": thought.vote, "swapped": thought.swapped, "text": thought.text}
            put("thought", {"pair": list(pair)} | told)

    def on_match(match: Comparison) -> None:
        put("match", match.to_dict())

    async def choose() -> Selection:
        return await service.best_of(
            prompt,
            responses,
            how,
            strategy=strategy,
            on_scores=on_scores,
            on_thought=on_thought,
            on_match=on_match,
        )

    choosing = asyncio.ensure_future(choose())
    choosing.add_done_callback(lambda _: queue.put_nowait(""))
    try:
        while event := await queue.get():
            yield event
        try:
            selection = choosing.result()
        except FsrmError as error:
            field = error.param if isinstance(error, RequestError) else None
            theirs = isinstance(error, InputError) and not isinstance(error, MisuseError)
            kind = "request" if theirs else "server"
            yield f"event: error\ndata: {json.dumps({'message': str(error), 'param': field, 'kind': kind})}\n\n"
            return
        while not queue.empty():
            yield queue.get_nowait()
        yield f"event: result\ndata: {json.dumps(selection.to_dict())}\n\n"
    finally:
        choosing.cancel()  # the client has gone: the thought is stopped
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await choosing


def _fast_part(service: Service, responses: list[str], scores: list[Score]) -> dict[str, Any]:
    """Return the fast scores, and what the gate says about each response beside the best one."""
    gate = service.model.gate
    # A fast score with a reason is that of a response which is too long.
    readable = [i for i, response in enumerate(responses) if response.strip() and not scores[i].reasons]
    read, rule = [scores[i] for i in readable], gate.spec.lists
    if rule is None:
        near = [readable[k] for k in gate.contenders(read)]
    else:
        decision = gate.best_of(read, [team_key(rule)(responses[i]) for i in readable])
        near = [readable[k] for k in decision.order[: decision.contenders]]
    best = near[0]
    decisions = {str(i): asdict(gate.pair(scores[best], scores[i])) for i in readable if i != best}
    return {"scores": [s.to_dict() for s in scores], "best": best, "contenders": near, "decisions": decisions}
