"""Chat templates as transformers runs them: Jinja in a sandbox, with the filters, globals and tags that it adds.

Source: transformers 5.24, ``utils/chat_template_utils.py``, ``_compile_jinja_template``, which is private there.
"""

from __future__ import annotations

import json
from functools import lru_cache

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fsrm_lite.errors import InputError


class _Generation(Extension):
    """The block ``{% generation %}``, with which trainers find the tokens of answers; its text is written as it is."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_as_it_is"), [], [], body).set_lineno(line)

    def _as_it_is(self, caller: Macro) -> str:
        return str(caller())


@lru_cache(maxsize=8)
def compile_template(source: str) -> jinja2.Template:
    """Return a chat template, ready to be rendered.

    Raises:
        jinja2.TemplateError: If it is no Jinja.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _json
    environment.globals["raise_exception"] = _refuse
    return environment.from_string(source)


def _json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(why: object) -> None:
    raise InputError(f"the chat template refuses the conversation: {why}")
