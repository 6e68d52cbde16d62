"""Reasoners. A reasoner is whatever writes answers to questions.

It may be a Python function (``CallableReasoner``), a bundle's own ability to answer questions (``SolveReasoner``), an
HTTP endpoint (``EndpointReasoner``) or a GGUF file (``fsrm_lite.loops.gguf_reasoner``).

A reasoner gets a batch of tasks and returns several proposals for each. A task is a question with the responses to it
that were rejected so far; a proposal is one response. Whatever goes wrong in a reasoner (it raises, takes too long, or
returns nothing) is raised as ``ReasonerError``.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import re
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import urlsplit

from fsrm_lite.batches import each_or_none
from fsrm_lite.checks import MAX_VOTES, MIN_TEMPERATURE, expect, is_number, is_whole, make_plain
from fsrm_lite.errors import (
    BundleError,
    FsrmError,
    InputError,
    JudgeUnavailableError,
    MisuseError,
    ReasonerError,
    one_line,
)
from fsrm_lite.jsonl import parse_json

if TYPE_CHECKING:
    from fsrm_lite.scorer import FastSlowRM
    from fsrm_lite.types import Watch

_T = TypeVar("_T")

_SURROGATE = re.compile("[\ud800-\udfff]")  # half of a character; JSON escapes can spell one, UTF-8 cannot

_AGAIN = "A checker rejected that answer as wrong. Solve the problem again, in another way.\n\n"

MAX_REPLY_BYTES = 16 * 2**20
"""A longer reply of an endpoint is refused: no batch of answers is that long."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a reasoner is asked.

    Attributes:
        question: The question's text.
        rejected: Responses to it that a critic has rejected, oldest first.
    """

    question: str
    rejected: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Proposal:
    """One response of a reasoner.

    Attributes:
        text: The response.
        tokens_generated: Tokens written for it. Where the reasoner does not say (a function, or an endpoint that
            reports no usage), the number of words.
        ended: Whether the reasoner ended it; False where it is known to have been cut.
    """

    text: str
    tokens_generated: int
    ended: bool = True


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a reasoner samples.

    Attributes:
        n: Proposals per task, at least 1.
        temperature: At least 0; 0 always takes the likeliest token.
        top_p: Sample among the likeliest tokens whose probabilities add up to this; in (0, 1].
        max_tokens: Most tokens of one proposal, at least 1.
        seed: Seed of the random choices. The same seed gives the same proposals, if the reasoner can promise that.
    """

    n: int = 1
    temperature: float = 0.8
    top_p: float = 1.0
    max_tokens: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        make_plain(self)
        for name in ("n", "max_tokens"):
            value = getattr(self, name)
            expect(is_whole(value) and value >= 1, f"sampling: {name}", value, "a whole number of at least 1")
        hot = is_number(self.temperature) and (self.temperature == 0.0 or self.temperature >= MIN_TEMPERATURE)
        least = f"0 (greedy) or a number of at least {MIN_TEMPERATURE:g}"
        expect(hot, "sampling: temperature", self.temperature, least)
        expect(is_number(self.top_p) and 0.0 < self.top_p <= 1.0, "sampling: top_p", self.top_p, "a number in (0, 1]")
        expect(is_whole(self.seed), "sampling: seed", self.seed, "a whole number")


class Reasoner(Protocol):
    """Anything that answers tasks.

    A reasoner that answers tasks one after another, not in one batch, should have the attribute ``one_by_one = True``.
    It is then asked one task at a time, so that an answer is not lost or asked for again when another task fails.
    """

    def propose(self, tasks: Sequence[Task], sampling: Sampling) -> list[list[Proposal]]:
        """Return ``sampling.n`` proposals per task, in order.

        Raises:
            ReasonerError: If any of the tasks cannot be answered.
        """
        ...


def ask(reasoner: Reasoner, tasks: Sequence[Task], sampling: Sampling) -> list[list[Proposal]]:
    """Ask a reasoner about many tasks. A task that fails does not cost the others their answers.

    Args:
        reasoner: The reasoner.
        tasks: Any number of tasks.
        sampling: How the reasoner samples.

    Returns:
        A list of proposals per task, in order. Where the reasoner failed it is empty, and the failure is logged. A
        proposal whose text is not valid Unicode has an empty text instead.
    """

    def propose(part: list[Task]) -> list[list[Proposal]]:
        try:
            groups = reasoner.propose(part, sampling)
        except FsrmError:
            raise
        except Exception as error:  # a user's reasoner may raise anything, and none of it may end a long run
            raise ReasonerError(f"the reasoner raised {type(error).__name__}: {one_line(error)}") from error
        whole = isinstance(groups, Sequence) and len(groups) == len(part)
        if not whole or not all(
            isinstance(group, Sequence) and all(isinstance(p, Proposal) for p in group) for group in groups
        ):
            raise ReasonerError(
                f"the reasoner gave {repr(groups)[:200]}, expected a list of proposals for each of {len(part)} tasks"
            )
        return groups

    size = 1 if getattr(reasoner, "one_by_one", False) else max(len(tasks), 1)
    groups = [
        group for i in range(0, len(tasks), size) for group in each_or_none(propose, tasks[i : i + size], ReasonerError)
    ]
    return [
        [Proposal("", p.tokens_generated) if _SURROGATE.search(p.text) else p for p in group or []] for group in groups
    ]


class CallableReasoner:
    """A Python function as a reasoner: it takes a question, returns a response, and is called once per proposal.

    The function is called as ``function(question)``, or as ``function(question, rejected)`` when ``feedback`` is set. A
    call that takes longer than the timeout counts as failed. Its thread cannot be stopped and runs on, but neither the
    caller nor the end of the program waits for it.
    """

    one_by_one = True

    def __init__(self, function: Callable[..., str], *, timeout_s: float | None = 60.0, feedback: bool = False) -> None:
        """Keep the function.

        Args:
            function: From a question (and the rejected responses) to a response.
            timeout_s: Longest time for one call in seconds, > 0. None waits for ever and needs no thread.
            feedback: Also pass the rejected responses, a tuple of texts, oldest first.

        Raises:
            InputError: If ``function`` cannot be called, or the timeout is not above 0.
        """
        expect(callable(function), "the reasoner", function, "a function from a question to a response")
        expect(
            timeout_s is None or (is_number(timeout_s) and timeout_s > 0),
            "timeout_s",
            timeout_s,
            "a number above 0, or None",
        )
        self._function = function
        self._timeout_s = timeout_s
        self._feedback = feedback

    def propose(self, tasks: Sequence[Task], sampling: Sampling) -> list[list[Proposal]]:
        """Return ``sampling.n`` proposals per task, in order; see ``Reasoner``. The function does its own sampling."""
        return [[self._call(task) for _ in range(sampling.n)] for task in tasks]

    def _call(self, task: Task) -> Proposal:
        """Return what the function answers."""
        arguments = (task.question, task.rejected) if self._feedback else (task.question,)
        try:
            text = (
                self._function(*arguments)
                if self._timeout_s is None
                else _within(self._timeout_s, lambda: self._function(*arguments))
            )
        except Exception as error:  # a user's function may raise anything
            raise ReasonerError(f"the reasoner raised {type(error).__name__}: {one_line(error)}") from error
        if not isinstance(text, str):
            raise ReasonerError(f"the reasoner returned a {type(text).__name__}, expected a string")
        return Proposal(text, len(text.split()))


class SolveReasoner:
    """A bundle's own ability to answer questions (its template ``solve``), sampled by its judge.

    It was trained on questions alone, so it is not told what was rejected. In a loop it tries something else because
    each turn has a new seed.
    """

    def __init__(self, model: FastSlowRM) -> None:
        """Use a loaded model. Its judge is loaded when the first answer is asked for.

        Raises:
            InputError: If its bundle has no template ``solve``.
            BundleError: If neither of its bundle's files can write, or the one that would is missing or damaged.
            JudgeUnavailableError: If only llama-cpp-python could write, and it cannot be used here.
        """
        manifest = model.bundle.judge().manifest
        if "solve" not in manifest.templates:
            raise InputError(f"the bundle {manifest.name!r} cannot solve: it has no template 'solve'")
        if model.judge_engine.engine == "llama.cpp":
            model.bundle.judge().path("slow")  # fetched and checked now
        self._model, self._encoder = model, model.judge_encoder

    def prompt_ids(self, task: Task) -> list[int]:
        """Return the token ids after which the model writes its answer.

        Raises:
            InputError: If the question is unusable.
            ContextOverflowError: If it does not fit into the model's context.
        """
        return self._encoder.solve(task.question)

    def propose(self, tasks: Sequence[Task], sampling: Sampling, *, watch: Watch | None = None) -> list[list[Proposal]]:
        """Return ``sampling.n`` proposals per task, at most 256; see ``Reasoner``. All are decoded in one batch.

        Args:
            tasks: The tasks.
            sampling: How to sample.
            watch: Sees what is being written and may stop it; see ``fsrm_lite.types.JudgeOptions``.
        """
        expect(sampling.n <= MAX_VOTES, "sampling: n", sampling.n, f"at most {MAX_VOTES} of a bundle")
        try:
            prompts = [self.prompt_ids(task) for task in tasks]
            groups = self._model.judge.generate(
                prompts,
                n=sampling.n,
                max_tokens=sampling.max_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=sampling.seed,
                watch=watch,
            )
        except (MisuseError, BundleError, JudgeUnavailableError):
            raise  # another question would meet the same
        except FsrmError as error:
            raise ReasonerError(f"the bundle cannot solve: {error}") from error
        return [[Proposal(g.text.strip(), g.tokens, g.ended) for g in group] for group in groups]


class EndpointReasoner:
    """An OpenAI-compatible ``/v1/chat/completions`` endpoint, called with Python's standard library.

    The conversation shows which answers were rejected. A failed call is repeated up to ``retries`` times, with growing
    pauses. A client error (status 4xx, except 408 and 429) is not repeated, because it would fail again.
    """

    one_by_one = True

    def __init__(
        self,
        url: str,
        *,
        model: str = "default",
        api_key: str | None = None,
        timeout_s: float = 120.0,
        retries: int = 2,
    ) -> None:
        """Keep the address.

        Args:
            url: Base address, for example ``http://127.0.0.1:8080/v1``.
            model: Name of the model, sent as ``model``.
            api_key: Sent as a bearer token; None sends none.
            timeout_s: Longest time for one try in seconds, > 0.
            retries: Further tries after a failure, at least 0.

        Raises:
            InputError: If the address is not http(s) or a number is out of range.
        """
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            raise InputError(
                f"endpoint {url!r} is not an http or https address, expected for example http://127.0.0.1:8080/v1"
            )
        if not timeout_s > 0 or retries < 0:
            raise InputError(f"timeout_s is {timeout_s} and retries is {retries}, expected above 0 and at least 0")
        self._url = url.rstrip("/") + "/chat/completions"
        self._model = model
        self._headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {api_key}"} if api_key else {}
        )
        self._timeout_s = timeout_s
        self._retries = retries

    def propose(self, tasks: Sequence[Task], sampling: Sampling) -> list[list[Proposal]]:
        """Return ``sampling.n`` proposals per task, in order; see ``Reasoner``."""
        return [self._answer(task, sampling) for task in tasks]

    def _answer(self, task: Task, sampling: Sampling) -> list[Proposal]:
        """Return ``sampling.n`` proposals.

        Some servers (llama.cpp's, for example) ignore ``n`` and return one; they are asked until there are enough.
        """
        proposals: list[Proposal] = []
        while len(proposals) < sampling.n:
            missing = sampling.n - len(proposals)
            body = {
                "model": self._model,
                "messages": conversation(task),
                "n": missing,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "max_tokens": sampling.max_tokens,
                "seed": sampling.seed + len(proposals),
            }
            proposals += _read_choices(self._post(body))[:missing]
        return proposals

    def _post(self, body: dict[str, Any]) -> bytes:
        """Return the body of the endpoint's reply, after as many tries as are allowed."""
        request = urllib.request.Request(self._url, json.dumps(body).encode(), self._headers)  # the scheme was checked
        tries = 0
        while True:
            tries += 1
            try:
                return _within(self._timeout_s, lambda: _fetch(request, self._timeout_s))
            except (OSError, http.client.HTTPException) as error:  # urllib's own errors and TimeoutError are OSErrors
                code = getattr(error, "code", None)
                hopeless = code is not None and 400 <= code < 500 and code not in (408, 429)
                if hopeless or tries > self._retries:
                    raise ReasonerError(
                        f"the endpoint {self._url}{_proxy_of(self._url)} failed after {tries} tries: {error}"
                    ) from error
                time.sleep(min(0.25 * 2 ** (tries - 1), 4.0))


def _within(timeout_s: float, call: Callable[[], _T]) -> _T:
    """Run ``call`` in a thread of its own and return its result, or raise its exception.

    After ``timeout_s`` seconds ``TimeoutError`` is raised instead. The thread is a daemon thread, so that one which
    never ends does not keep the program from ending.
    """
    values: list[_T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            values.append(call())
        except BaseException as error:  # whatever it is, the waiting thread raises it
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if errors:
        raise errors[0]
    if not values:
        raise TimeoutError(f"no answer within {timeout_s:g} s")
    return values[0]


def _fetch(request: urllib.request.Request, timeout_s: float) -> bytes:
    # urlopen would keep the proxies of its first call for the life of the process.
    opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if _is_here(request.host) else []))
    with opener.open(request, timeout=timeout_s) as reply:
        data: bytes = reply.read(MAX_REPLY_BYTES + 1)
    if len(data) > MAX_REPLY_BYTES:
        raise ReasonerError(f"the endpoint's reply is longer than {MAX_REPLY_BYTES} bytes")
    return data


def _proxy_of(url: str) -> str:
    """Return in words through which proxy an address is asked; empty if through none."""
    parts = urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy is None or _is_here(parts.netloc) or urllib.request.proxy_bypass(parts.netloc):
        return ""
    return f" (through the proxy {urlsplit(proxy).hostname or proxy})"


def _is_here(host: str) -> bool:
    """Return whether a host, with or without a port, is this machine, which no proxy can reach for us."""
    name = urlsplit(f"//{host}").hostname or ""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def conversation(task: Task) -> list[dict[str, str]]:
    """Return a task as chat messages, of the user and the assistant in turn.

    The first one is the question. Each rejected answer follows as the assistant's, and behind it the request to try
    again.
    """
    messages = [{"role": "user", "content": task.question}]
    for response in task.rejected:
        messages.append({"role": "assistant", "content": response})
        messages.append({"role": "user", "content": _AGAIN + task.question})
    return messages


def task_of(messages: Sequence[Mapping[str, str]]) -> Task:
    """Return what a conversation asks: its last turn of the user.

    In a conversation that ``conversation`` wrote that is the question, with the answers that were rejected.

    Args:
        messages: Chat messages with a role and a text each.

    Raises:
        InputError: If no message is the user's, or its text is blank.
    """
    asked = [m["content"] for m in messages if m["role"] == "user"]
    if not asked or not asked[-1].strip():
        raise InputError("the messages hold no message of the user, or the last one is empty; expected a question")
    rejected = tuple(m["content"] for m in messages if m["role"] == "assistant")
    again = Task(asked[0], rejected)
    return again if list(messages) == conversation(again) else Task(asked[-1])


def _read_choices(data: bytes) -> list[Proposal]:
    """Return the proposals in an endpoint's reply."""
    try:
        reply = parse_json(data)
        texts = [choice["message"]["content"] or "" for choice in reply["choices"]]
        ended = [choice.get("finish_reason") != "length" for choice in reply["choices"]]
        total = (reply.get("usage") or {}).get("completion_tokens")
    except (ValueError, OverflowError, KeyError, TypeError, AttributeError) as error:
        raise ReasonerError(f"the endpoint's reply is not a chat completion: {data[:200]!r}") from error
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ReasonerError("the endpoint returned no choices, or one whose content is not a text")
    if not isinstance(total, int):
        return [Proposal(text, len(text.split()), whole) for text, whole in zip(texts, ended, strict=True)]
    # The reply tells the tokens of all choices together; each is given an equal share, the first one the remainder too.
    share, rest = divmod(total, len(texts))
    tokens = [share + rest, *[share] * (len(texts) - 1)]
    return [Proposal(*one) for one in zip(texts, tokens, ended, strict=True)]
