"""The shapes that score and rank: vLLM's ``/score``, ``/rerank``, ``/pooling`` and ``/classify``, Cohere's, and TEI's.

Each is a function from a request's JSON to the reply's. These shapes promise scores at once, so the fast path answers
them unless a request says otherwise (``x_judge``; see ``fsrm_lite.serve.service.thinking``).

A response that cannot be scored (it is blank, or too long for the model) does not cost the others their scores. Where
the reply has one entry per response, its entry has a null score and says why in ``x_error``; where the reply is a
ranking, it is left out and named in ``x_errors``. Only if no response can be scored the request is refused.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from fsrm_lite.bundle.conversation import response_text
from fsrm_lite.checks import kind_of
from fsrm_lite.ranking.order import best_first
from fsrm_lite.serve import bodies
from fsrm_lite.serve.bodies import RequestError
from fsrm_lite.serve.service import Service, Thinking, Unreadable, thinking
from fsrm_lite.types import Prompt, Score


async def score(service: Service, body: dict[str, Any]) -> dict[str, Any]:
    """Answer vLLM's ``/score``: ``text_1`` (or ``queries``) holds prompts, ``text_2`` (or ``documents``) responses.

    A single prompt is scored with each response; otherwise both lists must be equally long.
    """
    service.check_name(body)
    most = service.limits.documents
    name = next((n for n in ("text_2", "documents", "data_2") if n in body), "text_2")
    left = bodies.texts(body, "text_1", "queries", "data_1", most=most)
    right = bodies.texts(body, name, most=most)
    if len(left) == 1:
        left = left * len(right)
    if len(left) != len(right):
        raise RequestError(
            f"text_1 has {len(left)} texts and {name} has {len(right)}; expected one, or equal numbers", at=("text_1",)
        )
    scores = await service.scores(list(zip(left, right, strict=True)), thinking(body, "never"), at=name)
    data = [{"index": i, "object": "score"} | _entry(s, "score") for i, s in enumerate(scores)]
    return _list_reply("score", service, body, data, scores)


async def rerank(service: Service, body: dict[str, Any]) -> dict[str, Any] | Ranking:
    """Answer ``/rerank`` and ``/v1/rerank``: vLLM's form, which is Jina's too, or TEI's where ``texts`` are given."""
    if "texts" in body and "documents" not in body:
        return await tei_rerank(service, body)
    service.check_name(body)
    documents = bodies.texts(body, "documents", most=service.limits.documents)
    # vLLM's default, 0, means all.
    top_n = bodies.whole(body, "top_n", None, 0) or len(documents)
    scores = await _scored(service, body, documents, "documents")
    order, errors = _order(scores)
    results = [
        {"index": i, "document": {"text": documents[i]}, "relevance_score": score.score} | _thought(score)
        for i, score in order[:top_n]
    ]
    head = {"id": _id("rerank"), "model": body.get("model") or service.name}
    return head | {"results": results, "usage": _usage(scores)} | ({"x_errors": errors} if errors else {})


async def cohere_rerank(service: Service, body: dict[str, Any]) -> dict[str, Any]:
    """Answer Cohere's ``/v2/rerank``. ``max_tokens_per_doc`` is accepted; nothing is cut, too long is an error."""
    service.check_name(body)
    documents = bodies.texts(body, "documents", most=service.limits.documents)
    top_n = bodies.whole(body, "top_n", None, 1) or len(documents)
    bodies.whole(body, "max_tokens_per_doc", None, 1)
    scores = await _scored(service, body, documents, "documents")
    order, errors = _order(scores)
    results = [{"index": i, "relevance_score": score.score} | _thought(score) for i, score in order[:top_n]]
    meta = {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}}
    meta["tokens"] = {"input_tokens": _usage(scores)["prompt_tokens"]}
    return {"id": str(uuid.uuid4()), "results": results, "meta": meta} | ({"x_errors": errors} if errors else {})


class Ranking(list[dict[str, Any]]):
    """TEI's reply, a bare list. What could not be scored has no place in it and goes into a header.

    Attributes:
        errors: Positions and reasons.
    """

    errors: list[dict[str, Any]]


async def tei_rerank(service: Service, body: dict[str, Any]) -> Ranking:
    """Answer the ``/rerank`` of Text Embeddings Inference.

    ``raw_scores`` asks for log-odds instead of scores in [0, 1], ``return_text`` for the texts.
    """
    texts = bodies.texts(body, "texts", most=service.limits.documents)
    raw, with_text = bodies.flag(body, "raw_scores"), bodies.flag(body, "return_text")
    scores = await _scored(service, body, texts, "texts")
    order, errors = _order(scores)
    reply = Ranking(
        {"index": i, "score": score.logit if raw else score.score} | ({"text": texts[i]} if with_text else {})
        for i, score in order
    )
    reply.errors = errors
    return reply


async def pooling(service: Service, body: dict[str, Any]) -> dict[str, Any]:
    """Answer vLLM's ``/pooling`` as for a reward model: the reward of each conversation's last turn, as log-odds."""
    scores = await _rewarded(service, body)
    data = [{"index": i, "object": "pooling"} | _entry(s, "logit", "data", listed=True) for i, s in enumerate(scores)]
    return _list_reply("pool", service, body, data, scores)


async def classify(service: Service, body: dict[str, Any]) -> dict[str, Any]:
    """Answer vLLM's ``/classify`` as for a reward model of one class: the score in [0, 1] of each conversation."""
    scores = await _rewarded(service, body)
    data = [
        {"index": i, "label": "reward", "num_classes": 1} | _entry(s, "score", "probs", listed=True)
        for i, s in enumerate(scores)
    ]
    return _list_reply("classify", service, body, data, scores)


async def _rewarded(service: Service, body: dict[str, Any]) -> list[Score | Unreadable]:
    """Score the last turn of each conversation in ``messages`` or ``input``."""
    service.check_name(body)
    field = "messages" if "messages" in body else "input"
    given = body.get(field, bodies.MISSING)
    if not isinstance(given, list) or not given:
        bodies.refuse(
            (field,),
            given,
            "a conversation that ends with the assistant's response, a list of those, or of "
            '{"prompt", "response"} objects (a text alone does not say where its response begins; /score takes two)',
        )
    one = all(isinstance(entry, dict) and "role" in entry for entry in given)
    entries = [given] if one else given
    if len(entries) > service.limits.documents:
        raise RequestError(
            f"{field} has {len(entries)} entries, expected at most {service.limits.documents}", at=(field,)
        )
    items = [split_response(entry, (field,) if one else (field, i)) for i, entry in enumerate(entries)]
    return await service.scores(items, thinking(body, "never"), at=field)


def split_response(given: object, at: tuple[str | int, ...]) -> tuple[Prompt, str]:
    """Return prompt and response of a conversation that ends with the assistant's turn, or of an object of both.

    Args:
        given: A list of messages, or ``{"prompt": ..., "response": a string}``.
        at: Where it stands in the request.
    """
    if isinstance(given, dict) and set(given) == {"prompt", "response"}:
        return given["prompt"], bodies.text(given, "response", at)
    last = given[-1] if isinstance(given, list) and len(given) > 1 else None
    if isinstance(given, list) and isinstance(last, dict) and last.get("role") == "assistant":
        return given[:-1], response_text(last, f"messages[{len(given) - 1}]")
    expected = 'messages of which the last is the assistant\'s, or {"prompt": ..., "response": ...}'
    raise RequestError(
        f"{RequestError('', at=at).param} is {kind_of(given)} without a response, expected {expected}", at=at
    )


async def _scored(
    service: Service, body: Mapping[str, Any], documents: Sequence[str], at: str
) -> list[Score | Unreadable]:
    """Score the documents of a request for its ``query``."""
    query = bodies.text(body, "query")
    if not query.strip():
        bodies.refuse(("query",), query, "some text")
    how: Thinking = thinking(body, "never")
    return await service.scores([(query, document) for document in documents], how, at=at)


def _order(scores: Sequence[Score | Unreadable]) -> tuple[list[tuple[int, Score]], list[dict[str, Any]]]:
    """Return the scored positions, best first, and for the others why they have no score."""
    scored = [(i, score) for i, score in enumerate(scores) if isinstance(score, Score)]
    order = [scored[k] for k in best_first([score for _, score in scored])]
    errors = [{"index": i, "message": str(s.error)} for i, s in enumerate(scores) if isinstance(s, Unreadable)]
    return order, errors


def _entry(score: Score | Unreadable, attribute: str, field: str = "", *, listed: bool = False) -> dict[str, Any]:
    """Return the fields of one response's entry in a reply that has an entry for each."""
    field = field or attribute
    if isinstance(score, Unreadable):
        return {field: None, "x_error": str(score.error)}
    value = getattr(score, attribute)
    return {field: [value] if listed else value} | _thought(score)


def _thought(score: Score) -> dict[str, Any]:
    """Return what a reply says about a score that the gate or the request wanted a thought for."""
    if not score.escalated:
        return {}
    said = {"x_route": str(score.route), "x_escalated": True, "x_reasons": list(score.reasons)}
    return said | {"x_complete": score.complete, "x_tokens_generated": score.tokens_generated}


def _list_reply(
    kind: str, service: Service, body: dict[str, Any], data: list[Any], scores: Sequence[Score | Unreadable]
) -> dict[str, Any]:
    head = {"id": _id(kind), "object": "list", "created": int(time.time()), "model": body.get("model") or service.name}
    return head | {"data": data, "usage": _usage(scores)}


def _id(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"


def _usage(scores: Sequence[Score | Unreadable]) -> dict[str, int]:
    scored = [score for score in scores if isinstance(score, Score)]
    read, written = sum(s.tokens_read for s in scored), sum(s.tokens_generated for s in scored)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
