"""The two APIs that ask typed questions: OpenAI's ``/v1/decisions`` and TypeSafe's ``/v1/systemone``.

Both are read into ``fsrm_lite.serve.questions`` and answered there; here stand only their words. Fields of our own
begin with ``x_``, in requests (see ``fsrm_lite.serve.service.thinking``) as in answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fsrm_lite.errors import InputError
from fsrm_lite.serve import bodies
from fsrm_lite.serve.bodies import RequestError
from fsrm_lite.serve.questions import Answer, Question, answer, check_options
from fsrm_lite.serve.rewards import split_response
from fsrm_lite.serve.service import Service, thinking
from fsrm_lite.types import Prompt

MOST_QUESTIONS = 400
MOST_CHOICES = 255
MOST_LEVELS = 10

_OPENAI_FIELDS = {"model", "input", "questions", "prompt_cache_key", "prompt_cache_options", "safety_identifier"}
_OPENAI_QUESTIONS = {
    "predicate": {"type", "name", "instructions"},
    "choice": {"type", "name", "instructions", "choices"},
    "score": {"type", "name", "instructions", "levels"},
}

_At = tuple[str | int, ...]


# --- OpenAI -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Asked:
    """One question of a request, and what its answer repeats.

    Attributes:
        question: The question.
        name: Its name, or None.
        values: Values of the choices, or labels of the levels.
    """

    question: Question
    name: str | None
    values: tuple[str | bool, ...] = ()


async def decisions(service: Service, body: dict[str, Any]) -> dict[str, Any]:
    """Answer OpenAI's ``/v1/decisions``. A question that cannot be answered, being too long, gets a refusal."""
    bodies.only(body, _OPENAI_FIELDS)
    if body.get("model") is None:
        bodies.refuse(("model",), body.get("model", bodies.MISSING), "the name of a model")
    service.check_name(body)
    text, pair = _input(body.get("input", bodies.MISSING))
    questions = body.get("questions", bodies.MISSING)
    if not isinstance(questions, list):
        bodies.refuse(("questions",), questions, f"a list of 1 to {MOST_QUESTIONS} questions")
    check_options(len(questions), 1, MOST_QUESTIONS, "questions", ("questions",))
    asked = [_openai_question(given, ("questions", i), pair) for i, given in enumerate(questions)]
    answers = await answer(service, text, [a.question for a in asked], thinking(body, service.judge))
    found = [a for a in answers if isinstance(a, Answer)]
    read, written = sum(a.input_tokens for a in found), sum(a.output_tokens for a in found)
    return {
        "model": body["model"],
        "answers": [_openai_answer(a, b) for a, b in zip(asked, answers, strict=True)],
        "usage": {
            "input_tokens": read,
            "input_tokens_details": {
                "cached_tokens": sum(a.cached_tokens for a in found),
                "cache_write_tokens": 0,
            },
            "output_tokens": written,
            "output_tokens_details": {"reasoning_tokens": written},
            "total_tokens": read + written,
        },
    } | service.own_fields()


def _input(given: object) -> tuple[str, tuple[Prompt, str] | None]:
    """Return the text that is asked about; and prompt and response, if it is a conversation that ends with one."""
    if isinstance(given, str) and given.strip():
        return given, None
    if not isinstance(given, list) or not given:
        bodies.refuse(("input",), given, "some text, or a list of messages")
    messages = [_message(item, ("input", i)) for i, item in enumerate(given)]
    text = "\n\n".join(f"{m['role']}: {m['content']}" for m in messages)
    if len(messages) == 1 and messages[0]["role"] == "user":
        text = messages[0]["content"]
    if not any(m["content"].strip() for m in messages):
        bodies.refuse(("input",), given, "some text")
    ends = len(messages) > 1 and messages[-1]["role"] == "assistant" and messages[-1]["content"].strip()
    return text, split_response(messages, ("input",)) if ends else None


def _message(item: object, at: _At) -> dict[str, str]:
    """Return one entry of ``input`` as a role and a text: a message, or a call of a tool or what it gave."""
    if not isinstance(item, dict):
        bodies.refuse(at, item, "a message")
    kind = item.get("type", "message")
    if kind == "message":
        role = bodies.text(item, "role", at)
        if role not in ("user", "system", "developer", "assistant"):
            bodies.refuse((*at, "role"), role, "user, system, developer or assistant")
        return {"role": role, "content": _parts(item.get("content", bodies.MISSING), (*at, "content"))}
    if kind in ("function_call", "custom_tool_call"):
        what = bodies.text(item, "arguments" if kind == "function_call" else "input", at)
        return {"role": "assistant", "content": f"{bodies.text(item, 'name', at)}({what})"}
    if kind in ("function_call_output", "custom_tool_call_output"):
        return {"role": "tool", "content": _parts(item.get("output", bodies.MISSING), (*at, "output"))}
    bodies.refuse((*at, "type"), kind, "message, function_call, custom_tool_call or the output of one")


def _parts(content: object, at: _At) -> str:
    """Return the text of a content: a string, or parts with text or JSON in them. Images cannot be read."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        bodies.refuse(at, content, "a string or a list of parts")
    texts = []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("input_text", "output_text"):
            texts.append(bodies.text(part, "text", (*at, i)))
        elif kind == "refusal":
            texts.append(bodies.text(part, "refusal", (*at, i)))
        elif kind == "input_json":
            texts.append(plain(part.get("data")))
        else:
            bodies.refuse((*at, i, "type"), kind, "a part of the type input_text (this model reads text alone)")
    return "\n".join(texts)


def _openai_question(given: object, at: _At, pair: tuple[Prompt, str] | None) -> _Asked:
    if not isinstance(given, dict):
        bodies.refuse(at, given, "a question")
    kind = given.get("type", bodies.MISSING)
    if not isinstance(kind, str) or kind not in _OPENAI_QUESTIONS:
        bodies.refuse((*at, "type"), kind, "predicate, choice or score")
    bodies.only(given, _OPENAI_QUESTIONS[kind], at)
    name = given.get("name")
    if not isinstance(name, str | None):
        bodies.refuse((*at, "name"), name, "a string")
    text = _parts(given.get("instructions", bodies.MISSING), (*at, "instructions"))
    if kind == "predicate":
        return _Asked(Question(kind, text, _yes_no(None, None), pair), name)
    field, value, most = ("choices", "value", MOST_CHOICES) if kind == "choice" else ("levels", "label", MOST_LEVELS)
    listed = given.get(field, bodies.MISSING)
    if not isinstance(listed, list):
        bodies.refuse((*at, field), listed, f"a list of 2 to {most} {field}")
    check_options(len(listed), 2, most, field, (*at, field))
    values: list[str | bool] = []
    options = []
    for i, option in enumerate(listed):
        here = (*at, field, i)
        if not isinstance(option, dict):
            bodies.refuse(here, option, f'an object with "{value}"')
        bodies.only(option, (value, "description"), here)
        found = option.get(value, bodies.MISSING)
        if not isinstance(found, str | bool) or (kind == "score" and not isinstance(found, str)) or found == "":
            bodies.refuse((*here, value), found, "a string" + (" or true or false" if kind == "choice" else ""))
        if any(found == v and type(found) is type(v) for v in values):
            bodies.refuse((*here, value), found, f"each {value} once")
        description = option.get("description")
        if not isinstance(description, str | None):
            bodies.refuse((*here, "description"), description, "a string")
        values.append(found)
        options.append(_option(plain(found), description))
    return _Asked(Question(kind, text, tuple(options)), name, tuple(values))


def _openai_answer(asked: _Asked, given: Answer | InputError) -> dict[str, Any]:
    kind, name = asked.question.kind, asked.name
    if not isinstance(given, Answer):
        return {"type": "refusal", "name": name, "x_error": str(given)}
    p = given.probabilities
    if kind == "predicate":
        found: dict[str, Any] = {"probability": p[0]}
    elif kind == "choice":
        found = {
            "choice": asked.values[given.choice],
            "confidence": given.choice_confidence,
            "probabilities": [{"value": v, "probability": q} for v, q in zip(asked.values, p, strict=True)],
        }
    else:
        found = {
            "score": given.expectation,
            "confidence": given.scale_confidence,
            "probabilities": [
                {"value": i, "label": v, "probability": q} for i, (v, q) in enumerate(zip(asked.values, p, strict=True))
            ],
        }
    return {"type": kind, "name": name} | found | given.own_fields()


# --- TypeSafe ---------------------------------------------------------------------------------------------------------


async def systemone(service: Service, body: dict[str, Any]) -> dict[str, Any]:
    """Answer TypeSafe's ``/v1/systemone``. Unknown fields of the request are ignored, as there."""
    service.check_name(body, "jev-latest")
    state = body.get("state", bodies.MISSING)
    if not isinstance(state, str | dict | list):
        bodies.refuse(("state",), state, "a string, an object or an array")
    pair = None
    if isinstance(state, dict) and set(state) == {"prompt", "response"} and isinstance(state["response"], str):
        pair = (state["prompt"], state["response"])
    questions = body.get("questions", bodies.MISSING)
    if not isinstance(questions, dict):
        bodies.refuse(("questions",), questions, "an object with a question per id")
    check_options(len(questions), 1, MOST_QUESTIONS, "questions", ("questions",))
    asked = [_systemone_question(given, ("questions", name), pair) for name, given in questions.items()]
    answers = await answer(service, plain(state), asked, thinking(body, service.judge))
    for name, given in zip(questions, answers, strict=True):
        if isinstance(given, InputError):  # this API has no refusals
            raise RequestError(f"questions.{name}: {given}", at=("questions", name)) from given
    found = [a for a in answers if isinstance(a, Answer)]
    written = sum(a.output_tokens for a in found)
    usage = {"input_tokens": sum(a.input_tokens for a in found), "output_tokens": written}
    return {
        "model": service.name,
        "answers": {
            name: _systemone_answer(given, question, a)
            for (name, given), question, a in zip(questions.items(), asked, found, strict=True)
        },
        "usage": usage | {"x_reasoning_tokens": written},
    } | service.own_fields()


def _systemone_question(given: object, at: _At, pair: tuple[Prompt, str] | None) -> Question:
    if not isinstance(given, dict):
        bodies.refuse(at, given, "a question")
    kind = given.get("type", bodies.MISSING)
    if kind not in ("noul", "choice", "score"):
        bodies.refuse((*at, "type"), kind, "noul, choice or score")
    text = plain(given.get("instructions"))
    criteria = given.get("criteria")
    here = (*at, "criteria")
    if kind == "noul":
        if not isinstance(criteria, dict | None):
            bodies.refuse(here, criteria, 'an object with "true" and "false", or null')
        sides = criteria or {}
        for side, about in sides.items():
            if side not in ("true", "false"):
                bodies.refuse((*here, side), about, 'no criteria but "true" and "false"')
        return Question("predicate", text, _yes_no(sides.get("true"), sides.get("false")), pair)
    if kind == "choice":
        if not isinstance(criteria, dict):
            bodies.refuse(here, criteria, f"an object of 2 to {MOST_CHOICES} options")
        check_options(len(criteria), 2, MOST_CHOICES, "options", here)
        for name in criteria:
            if not name.strip():
                bodies.refuse((*here, name), name, "an option with a name")
        return Question("choice", text, tuple(_option(name, about) for name, about in criteria.items()))
    if not isinstance(criteria, list):
        bodies.refuse(here, criteria, f"an array of 2 to {MOST_LEVELS} levels, from the lowest to the highest")
    check_options(len(criteria), 2, MOST_LEVELS, "levels", here)
    for i, level in enumerate(criteria):
        if level is None or not plain(level).strip():
            bodies.refuse((*here, i), level, "the description of a level")
    return Question("score", text, tuple(plain(level) for level in criteria))


def _systemone_answer(given: Mapping[str, Any], question: Question, found: Answer) -> dict[str, Any]:
    p = found.probabilities
    kind = given["type"]
    if kind == "noul":
        said: dict[str, Any] = {"noul": p[0]}
    elif kind == "choice":
        names = list(given["criteria"])
        said = {
            "choice": names[found.choice],
            "probabilities": dict(zip(names, p, strict=True)),
            "confidence": found.choice_confidence,
        }
    else:
        said = {
            "score": found.expectation,
            "legend": {str(i): level for i, level in enumerate(question.options)},
            "probabilities": {str(i): q for i, q in enumerate(p)},
            "confidence": found.scale_confidence,
        }
    return {"type": kind} | said | found.own_fields()


# --- What both have in common -----------------------------------------------------------------------------------------


def plain(value: object) -> str:
    """Return a value as the model reads it: a string as it is, null as nothing, anything else as JSON."""
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def _option(name: str, about: object) -> str:
    described = plain(about)
    return f"{name}: {described}" if described.strip() else name


def _yes_no(true: object, false: object) -> tuple[str, str]:
    return _option("Yes", true), _option("No", false)
