"""Reads the JSON of a request, within limits, and takes fields out of it.

Whatever is wrong with it is a ``RequestError``, which names the field. Each API words that error in its own way; see
``fsrm_lite.serve.application``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from reprlib import repr as short
from typing import TYPE_CHECKING, Any, NoReturn

from fsrm_lite.checks import first_repeated, is_number, is_whole, kind_of
from fsrm_lite.errors import InputError, one_line

if TYPE_CHECKING:
    from starlette.requests import Request

MAX_DEPTH = 64
"""Deepest nesting of a body. Python's own reader gives up at some depth that depends on who called it."""


class RequestError(InputError):
    """A request cannot be answered as it was given.

    Args:
        message: What was given, what was expected.
        at: Where in the body, for example ``("questions", 0, "choices")``; empty where it is no field's fault.
        status: HTTP status, 400 to 499, or 503 where the server cannot take the request now.
        code: A word for programs.
        retry_after_s: Seconds after which to try again; None where that is of no use.
    """

    def __init__(
        self,
        message: str,
        *,
        at: tuple[str | int, ...] = (),
        status: int = 400,
        code: str = "invalid_value",
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.at, self.status, self.code, self.retry_after_s = at, status, code, retry_after_s

    @property
    def param(self) -> str | None:
        """The field as ``questions[0].choices``; None where it is no field's fault."""
        if not self.at:
            return None
        return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.at).removeprefix(".")


def refuse(at: tuple[str | int, ...], value: object, expected: str) -> NoReturn:
    """Raise a ``RequestError`` that says which field is wrong, what it holds and what was expected."""
    error = RequestError("", at=at)
    held = "missing" if value is MISSING else "null" if value is None else short(value)
    raise RequestError(f"{error.param} is {held}, expected {expected}", at=at)


class _Missing:
    """Stands for a field that is not there, which null does not."""


MISSING = _Missing()


async def read_json(request: Request, *, max_bytes: int, timeout_s: float) -> dict[str, Any]:
    """Return the JSON object in a request's body.

    Args:
        request: The request.
        max_bytes: Longest body.
        timeout_s: Longest time that the client may take to send it.

    Raises:
        RequestError: If the body is too long, comes too slowly, is not JSON, or not an object.
    """
    kind = request.headers.get("content-type")
    if kind is not None and not _is_json(kind):
        raise RequestError(
            f"the content type is {kind[:100]!r}, expected application/json",
            status=415,
            code="unsupported_content_type",
        )
    try:
        data = await asyncio.wait_for(_body(request, max_bytes), timeout_s)
    except TimeoutError:
        raise RequestError(
            f"the body did not arrive within {timeout_s:g} s", status=408, code="request_timeout"
        ) from None
    return parse(data)


async def _body(request: Request, max_bytes: int) -> bytes:
    """Return a request's body, of which no more than ``max_bytes`` are ever held."""
    stated = request.headers.get("content-length", "0")
    size, parts = 0, []
    if stated.isascii() and stated.isdigit() and int(stated) > max_bytes:
        size = int(stated)
    else:
        async for part in request.stream():
            size += len(part)
            if size > max_bytes:
                break
            parts.append(part)
    if size > max_bytes:
        raise RequestError(f"the body is longer than {max_bytes} bytes", status=413, code="request_too_large")
    return b"".join(parts)


def parse(data: bytes) -> dict[str, Any]:
    """Return the JSON object that a body holds.

    Raises:
        RequestError: If it holds anything else, names a key twice, or is nested more than ``MAX_DEPTH`` levels deep.
    """
    try:
        body = json.loads(data, object_pairs_hook=_object, parse_constant=_no_constant)
    except RequestError:
        raise
    except RecursionError:
        _too_deep()
    except ValueError as error:
        raise RequestError(f"the body is not JSON: {one_line(error)}", code="invalid_json") from error
    if not isinstance(body, dict):
        raise RequestError(f"the body is {kind_of(body)}, expected an object", code="invalid_json")
    _check_depth(body)
    return body


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object, if it names no key twice: of two options with one name, one would be lost without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = first_repeated(name for name, _ in pairs)
        raise RequestError(f"the body names the key {short(twice)} twice in one object", code="duplicate_key")
    return found


def _no_constant(name: str) -> NoReturn:
    raise RequestError(f"the body holds {name}, which JSON does not have", code="invalid_json")


def _too_deep() -> NoReturn:
    raise RequestError(f"the body is nested more than {MAX_DEPTH} levels deep", code="nested_too_deeply")


def _check_depth(body: dict[str, Any]) -> None:
    level: list[Any] = [body]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    _too_deep()


def _is_json(content_type: str) -> bool:
    media = content_type.split(";")[0].strip().lower()
    return media == "application/json" or (media.startswith("application/") and media.endswith("+json"))


# --- Fields. Each function returns the value of one field, or raises a RequestError that names it. ------------------


def text(body: Mapping[str, Any], name: str, at: tuple[str | int, ...] = ()) -> str:
    """Return a field that must be a string."""
    value = body.get(name, MISSING)
    if not isinstance(value, str):
        refuse((*at, name), value, "a string")
    return value


def texts(body: Mapping[str, Any], *names: str, most: int) -> list[str]:
    """Return the texts under the first of ``names`` that the body has.

    They may be one string, a list of strings, or a list of ``{"text": ...}`` objects, which rerankers allow too.

    Args:
        body: The body.
        *names: Names of the field, the preferred one first.
        most: Most texts.
    """
    name = next((n for n in names if n in body), names[0])
    value = body.get(name, MISSING)
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not values:
        refuse((name,), value, "a string or a list of strings")
    if len(values) > most:
        raise RequestError(f"{name} has {len(values)} entries, expected at most {most}", at=(name,))
    found = []
    for i, entry in enumerate(values):
        inner = entry.get("text") if isinstance(entry, dict) else entry
        if not isinstance(inner, str):
            refuse((name, i), inner, 'a string or {"text": a string}')
        found.append(inner)
    return found


def whole(body: Mapping[str, Any], name: str, default: int | None, least: int, most: int | None = None) -> int | None:
    """Return a field that must be a whole number in a range; the default where it is missing or null."""
    value = body.get(name)
    if value is None:
        return default
    if not is_whole(value) or value < least or (most is not None and value > most):
        limit = f"of at least {least}" if most is None else f"from {least} to {most}"
        refuse((name,), value, f"a whole number {limit}")
    return value


def number(body: Mapping[str, Any], name: str, default: float | None, least: float) -> float | None:
    """Return a field that must be a number of at least ``least``; the default where it is missing or null."""
    value = body.get(name)
    if value is None:
        return default
    if not is_number(value) or value < least:
        refuse((name,), value, f"a number of at least {least:g}")
    return value


def flag(body: Mapping[str, Any], name: str) -> bool:
    """Return a field that must be true or false; false where it is missing or null."""
    value = body.get(name)
    if not isinstance(value, bool | None):
        refuse((name,), value, "true or false")
    return bool(value)


def one_of(body: Mapping[str, Any], name: str, choices: Iterable[str], default: str) -> str:
    """Return a field that must be one of some words; the default where it is missing or null."""
    value, known = body.get(name), list(choices)
    if value is None:
        return default
    if value not in known:
        refuse((name,), value, f"one of {', '.join(known)}")
    return str(value)


def only(body: Mapping[str, Any], known: Iterable[str], at: tuple[str | int, ...] = ()) -> None:
    """Refuse fields that are not known, as OpenAI's API does. Fields named ``x_...`` are this server's own."""
    for name in body:
        if name not in known and not name.startswith("x_"):
            error = RequestError("", at=(*at, name))
            raise RequestError(
                f"unrecognized request argument: {error.param}", at=(*at, name), code="unknown_parameter"
            )
