"""A reasoner from a single GGUF file, without a bundle. It uses the file's own chat template and llama.cpp's tokenizer.

Questions and rejected answers are untrusted text: even one that spells a special token such as ``<|im_end|>`` must stay
text. So the template is rendered (in Jinja's sandbox) with a mark in the place of each message, and never sees the
messages. Special tokens that come out are the template's own and become single ids. Only then do the messages take the
place of the marks, and they are tokenized as plain text. ``fsrm_lite.bundle.encoder`` does the same for a bundle.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache
from itertools import pairwise
from pathlib import Path

from fsrm_lite.bundle.conversation import prompt_text
from fsrm_lite.errors import FsrmError, InputError, JudgeError, ReasonerError, missing_extra, one_line
from fsrm_lite.loops.reasoners import Proposal, Sampling, Task, conversation
from fsrm_lite.runtimes.llama.engine import LlamaEngine
from fsrm_lite.runtimes.llama.gguf_header import read_header
from fsrm_lite.runtimes.llama.native import LlamaTokenizer
from fsrm_lite.slow.sampling import vote_key
from fsrm_lite.slow.worker import InlineRunner
from fsrm_lite.types import Decoding, Job, Request

PROMPT_SLOT = "{prompt}"
_NEVER = "(?!)"
_MARK = re.compile("\ue000(\\d+)\ue001")


class GgufReasoner:
    """A language model in a GGUF file, sampled through llama.cpp.

    Any number of threads may call it; one is answered at a time.
    """

    def __init__(self, path: str | Path, *, template: str | None = None, threads: int | None = None) -> None:
        r"""Load the model.

        Args:
            path: The GGUF file.
            template: The prompt with ``{prompt}`` in the place of the question, for example
                ``"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"``. The model then gets the question
                alone, not the answers that were rejected. None takes the file's own chat template, which shows the
                model the rejected answers as a conversation.
            threads: Compute threads; None for one per core that this process may use (a small model gets one thread).

        Raises:
            BundleError: If the file is damaged or of an unusable kind.
            InputError: If there is no template, or it cannot be rendered.
            JudgeUnavailableError: If llama-cpp-python cannot be used here.
        """
        entries = read_header(Path(path)).entries
        chat = entries.get("tokenizer.chat_template")
        if template is None and not chat:
            raise InputError(
                f"{path} has no chat template; "
                f"give the prompt it was trained on as a template, with {PROMPT_SLOT} in it"
            )
        if template is not None and PROMPT_SLOT not in template:
            raise InputError(f"the template has no {PROMPT_SLOT}, the place of the question")
        self._context = int(entries.get(f"{entries.get('general.architecture')}.context_length", 0))
        self._lock = threading.Lock()
        self._runner: InlineRunner | None = InlineRunner(Path(path), lambda ids: "", threads=threads)
        try:
            engine = self._runner.engine
            assert isinstance(engine, LlamaEngine)
            self._tokenizer = engine.tokenizer
            self._prompts = _Prompts(
                self._tokenizer, _plain(template) if template is not None else _chat(str(chat), self._tokenizer)
            )
            self._prompts.ids(Task("question"))  # so that a template that does not work is refused now
        except BaseException:
            self.close()
            raise

    def propose(self, tasks: Sequence[Task], sampling: Sampling) -> list[list[Proposal]]:
        """Return ``sampling.n`` proposals per task, in order; see ``Reasoner``. All tasks are decoded in one batch."""
        with self._lock:
            if self._runner is None:
                raise ReasonerError("this reasoner is closed; open another one")
            try:
                jobs = tuple(self._job(task, sampling, k) for task in tasks for k in range(sampling.n))
                decoding = Decoding(sampling.temperature, sampling.top_p, 0)
                request = Request(jobs, decoding, self._tokenizer.ends)
                completions, _ = self._runner.run(request) if jobs else ([], True)
            except (InputError, JudgeError) as error:
                raise ReasonerError(f"the model cannot answer: {error}") from error
            proposals = [
                Proposal(self._tokenizer.detokenize(c.ids).strip(), len(c.ids), c.finished and len(c.ids) < job.budget)
                for c, job in zip(completions, jobs, strict=True)
                if c is not None
            ]
        return [proposals[i : i + sampling.n] for i in range(0, len(proposals), sampling.n)]

    def _job(self, task: Task, sampling: Sampling, number: int) -> Job:
        """Return the job that writes one proposal; it may write no more than the context has room for."""
        ids = tuple(self._prompts.ids(task))
        room = self._context - len(ids)
        if room < 1:
            raise InputError(f"the prompt has {len(ids)} tokens, the context holds {self._context}")
        return Job(ids, vote_key(sampling.seed, ids, number), min(sampling.max_tokens, room))

    def close(self) -> None:
        """Free the model, once a call that is running has ended. Closing twice is allowed."""
        with self._lock:
            if self._runner is not None:
                self._runner.close()
            self._runner = None


class _Prompts:
    """Turns tasks into token ids by one template."""

    def __init__(self, tokenizer: LlamaTokenizer, render: Callable[[int], str]) -> None:
        """Keep the tokenizer and the template.

        Args:
            tokenizer: The model's.
            render: From a number of messages to the prompt, with a mark in the place of each message's text.
        """
        self._tokenizer = tokenizer
        self._special = {token.id for token in tokenizer.special.values()}
        names = sorted(
            tokenizer.special, key=len, reverse=True
        )  # longest first, because one name may be the beginning of another
        tokens = [tokenizer.special[name] for name in names]
        spaced = [
            r"\s*" * t.strips_left + re.escape(name) + r"\s*" * t.strips_right
            for name, t in zip(names, tokens, strict=True)
        ]
        self._split = re.compile("|".join(spaced) or _NEVER)
        self._starts = re.compile(f"(?={'|'.join(map(re.escape, names)) or _NEVER})")
        self._pieces = cache(lambda messages: self._cut(render(messages)))

    def ids(self, task: Task) -> list[int]:
        """Return the token ids of the prompt for a task."""
        texts = [prompt_text(message["content"]) for message in conversation(task)]
        ids: list[int] = []
        for piece in self._pieces(len(texts)):
            ids += [piece] if isinstance(piece, int) else self._text(_MARK.sub(lambda m: texts[int(m.group(1))], piece))
        start = self._tokenizer.start
        return ids if start is None or ids[:1] == [start] else [start, *ids]

    def _cut(self, prompt: str) -> list[int | str]:
        """Return a rendered prompt in pieces: the id of each special token, and the text between them."""
        if not _MARK.search(prompt):
            raise InputError("the model's chat template leaves the question out; give a template")
        pieces: list[int | str] = []
        position = 0
        for match in self._split.finditer(prompt):
            pieces += [prompt[position : match.start()], self._tokenizer.special[match[0].strip()].id]
            position = match.end()
        return [piece for piece in [*pieces, prompt[position:]] if piece != ""]

    def _text(self, text: str) -> list[int]:
        """Return the ids of plain text, none of which is a special token.

        Where the text spells a special token, it is cut behind that token's first character and tokenized in parts.
        """
        ids = self._tokenizer.tokenize(text)
        if self._special.isdisjoint(ids):
            return ids
        cuts = [0, *(match.start() + 1 for match in self._starts.finditer(text)), len(text)]
        return [i for start, end in pairwise(cuts) for i in self._tokenizer.tokenize(text[start:end])]


def _plain(template: str) -> Callable[[int], str]:
    return lambda messages: template.replace(PROMPT_SLOT, _mark(0))


def _chat(template: str, tokenizer: LlamaTokenizer) -> Callable[[int], str]:
    """Return a function from a number of messages to the prompt, from a chat template in Hugging Face's form."""
    try:
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise missing_extra("jinja2", "judge", error) from error
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
    names = {"bos_token": tokenizer.name("bos"), "eos_token": tokenizer.name("eos")}

    def render(messages: int) -> str:
        spoken = [{"role": "assistant" if i % 2 else "user", "content": _mark(i)} for i in range(messages)]
        try:
            return environment.from_string(template).render(messages=spoken, add_generation_prompt=True, **names)
        except FsrmError:
            raise
        except Exception as error:  # a template is a program, and may fail in any way
            raise InputError(
                f"the model's chat template cannot be rendered ({one_line(error)}); give a template"
            ) from error

    return render


def _refuse(why: object) -> None:
    raise InputError(f"the model's chat template refuses the conversation: {why}")


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _mark(number: int) -> str:
    return f"\ue000{number}\ue001"
