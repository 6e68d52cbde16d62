"""``fsrm.json``, the manifest of a bundle: its schema, checked on load, and nothing about files on disk.

The manifest is the one place that knows which tokens mean what: label ids and verdict ids are resolved at export and
written down here; the runtime never guesses a token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fsrm_lite.checks import expect, expect_decoding, is_number, is_whole
from fsrm_lite.errors import BundleError, GateSpecError
from fsrm_lite.gate import GateSpec

MANIFEST_NAME = "fsrm.json"
"""The file of a bundle that holds its manifest."""

FORMAT_VERSION = 1
SLOTS = {
    "pointwise_fast": frozenset({"prompt", "response"}),
    "pointwise_slow": frozenset({"prompt", "response"}),
    "pairwise_slow": frozenset({"prompt", "response_a", "response_b"}),
    "solve": frozenset({"prompt"}),
}
"""The templates a manifest may have, and the slots each must name exactly once. Only the first is required."""

_SLOT = re.compile(r"\{(\w*)\}")


@dataclass(frozen=True, slots=True)
class Label:
    """One fast label: its word, its token id, its numeric value."""

    text: str
    id: int
    value: float


@dataclass(frozen=True, slots=True)
class VerdictTemplate:
    r"""How a slow template ends: ``close + prefix + choice + suffix``.

    Attributes:
        close: Text that ends a thought, for example ``"</think>\n\n"``.
        prefix: Text between the end of the thought and the choice, for example ``"\\boxed{Assistant "``.
        choices: The words the judge chooses from; for a pair, first then second.
        choice_ids: Token id of each choice as it stands behind ``prefix``.
        suffix: Text after the choice.
        values: Numeric value per choice, or empty for a pair.
    """

    close: str
    prefix: str
    choices: tuple[str, ...]
    choice_ids: tuple[int, ...]
    suffix: str = ""
    values: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt template: text with ``{slots}``, special tokens written out, and the form of its verdict."""

    text: str
    verdict: VerdictTemplate | None = None


@dataclass(frozen=True, slots=True)
class JudgeDefaults:
    """How the judge decodes unless the caller says otherwise.

    Attributes:
        votes: Chains of thought per pair *and order*, or per response.
        temperature: Sampling temperature; 0 is greedy.
        top_p: Nucleus, in (0, 1]; applied after the temperature, as Hugging Face does.
        top_k: Keep the k likeliest tokens; 0 keeps all.
    """

    votes: int = 1
    temperature: float = 0.6
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        expect_decoding(self.votes, self.temperature, self.top_p, self.top_k)


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes the model was made for, in tokens."""

    context: int
    thinking_tokens: int

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        expect(
            is_whole(self.context) and self.context >= 16,
            "limits.context",
            self.context,
            "a whole number of at least 16",
        )
        expect(
            is_whole(self.thinking_tokens) and self.thinking_tokens >= 1,
            "limits.thinking_tokens",
            self.thinking_tokens,
            "a whole number above 0",
        )


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of the bundle: path relative to its root, size in bytes, SHA-256 in hex."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The parsed ``fsrm.json``.

    Attributes:
        name: Model name.
        labels: Fast labels, at least two.
        templates: By name, see ``SLOTS``.
        special_tokens: Text to id of every control token a template or verdict may use.
        stop_ids: Ids at which generation ends.
        limits: Context and thinking budget.
        vocab_size: Size of the model's output distribution.
        gate: Thresholds of the dual-confidence gate.
        judge: Decoding defaults.
        files: By role: ``tokenizer``, ``fast``, ``fast_data`` (optional), ``slow`` (optional).
        card: ``license``, ``architecture``, ``provenance``, ``parity``, ``evaluation``: shown, never acted on.
    """

    name: str
    labels: tuple[Label, ...]
    templates: Mapping[str, Template]
    special_tokens: Mapping[str, int]
    stop_ids: tuple[int, ...]
    limits: Limits
    vocab_size: int
    gate: GateSpec = field(default_factory=GateSpec)
    judge: JudgeDefaults = field(default_factory=JudgeDefaults)
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: object) -> Manifest:
        """Check and parse the JSON form.

        Raises:
            BundleError: On an unknown format version, a missing or ill-typed entry, or a template with wrong slots.
        """
        if not isinstance(data, dict):
            raise BundleError(f"fsrm.json holds a {type(data).__name__}, expected an object")
        version = data.get("format_version")
        if version != FORMAT_VERSION:
            raise BundleError(
                f"fsrm.json has format_version {version!r}, this package reads {FORMAT_VERSION}; install a matching fsrm-lite"
            )
        try:
            manifest = _parse(data)
            _check(manifest)
        except (KeyError, TypeError, ValueError, AttributeError, GateSpecError) as error:
            what = f"entry {error} is missing" if isinstance(error, KeyError) else str(error)
            raise BundleError(f"fsrm.json is malformed: {what}") from error
        return manifest

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form; ``from_dict`` of it gives an equal manifest."""
        return {
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "labels": [{"text": x.text, "id": x.id, "value": x.value} for x in self.labels],
            "templates": {name: _template_dict(t) for name, t in self.templates.items()},
            "special_tokens": dict(self.special_tokens),
            "stop_ids": list(self.stop_ids),
            "limits": {"context": self.limits.context, "thinking_tokens": self.limits.thinking_tokens},
            "vocab_size": self.vocab_size,
            "gate": self.gate.to_dict(),
            "judge": {name: getattr(self.judge, name) for name in JudgeDefaults.__dataclass_fields__},
            "files": {role: {"path": f.path, "bytes": f.bytes, "sha256": f.sha256} for role, f in self.files.items()},
            "card": dict(self.card),
        }


def template_slots(text: str) -> list[str]:
    """Return the slot names of a template in order, for example ``["prompt", "response"]``."""
    return _SLOT.findall(text)


def check_template(name: str, text: str) -> None:
    """Refuse a template that is unknown or does not name each of its slots exactly once.

    Raises:
        BundleError: Naming the template and the slot.
    """
    if name not in SLOTS:
        raise BundleError(f"template {name!r} is unknown, expected one of {', '.join(SLOTS)}")
    slots = template_slots(text)
    for slot in slots:
        if slot not in SLOTS[name]:
            raise BundleError(
                f"template {name!r} names the unknown slot {{{slot}}}, expected {', '.join(sorted(SLOTS[name]))}"
            )
    for slot in sorted(SLOTS[name]):
        if slots.count(slot) != 1:
            raise BundleError(f"template {name!r} names the slot {{{slot}}} {slots.count(slot)} times, expected once")


def _parse(data: dict[str, Any]) -> Manifest:
    return Manifest(
        name=str(data["name"]),
        labels=tuple(Label(str(x["text"]), int(x["id"]), float(x["value"])) for x in data["labels"]),
        templates={name: _parse_template(t) for name, t in data["templates"].items()},
        special_tokens={str(k): int(v) for k, v in data["special_tokens"].items()},
        stop_ids=tuple(int(x) for x in data["stop_ids"]),
        limits=Limits(**data["limits"]),
        vocab_size=int(data["vocab_size"]),
        gate=GateSpec.from_dict(data.get("gate", {})),
        judge=JudgeDefaults(**data.get("judge", {})),
        files={role: FileEntry(str(f["path"]), int(f["bytes"]), str(f["sha256"])) for role, f in data["files"].items()},
        card=dict(data.get("card", {})),
    )


def _parse_template(data: dict[str, Any]) -> Template:
    raw = data.get("verdict")
    verdict = None
    if raw is not None:
        verdict = VerdictTemplate(
            close=str(raw["close"]),
            prefix=str(raw["prefix"]),
            choices=tuple(str(c) for c in raw["choices"]),
            choice_ids=tuple(int(i) for i in raw["choice_ids"]),
            suffix=str(raw.get("suffix", "")),
            values=tuple(float(v) for v in raw.get("values", ())),
        )
    return Template(str(data["text"]), verdict)


def _template_dict(template: Template) -> dict[str, Any]:
    data: dict[str, Any] = {"text": template.text}
    if template.verdict is not None:
        v = template.verdict
        data["verdict"] = {
            "close": v.close,
            "prefix": v.prefix,
            "choices": list(v.choices),
            "choice_ids": list(v.choice_ids),
            "suffix": v.suffix,
            "values": list(v.values),
        }
    return data


def _check(manifest: Manifest) -> None:
    if "pointwise_fast" not in manifest.templates:
        raise BundleError("fsrm.json has no template 'pointwise_fast'; every bundle needs one")
    if len(manifest.labels) < 2:
        raise BundleError(f"fsrm.json has {len(manifest.labels)} labels, expected at least 2")
    if len({x.id for x in manifest.labels}) != len(manifest.labels):
        raise BundleError("fsrm.json gives two labels the same token id")
    for name, template in manifest.templates.items():
        check_template(name, template.text)
        verdict = template.verdict
        if name.endswith("_slow") and verdict is None:
            raise BundleError(f"template {name!r} has no verdict form; a slow template needs one")
        if verdict is not None and not len(verdict.choices) == len(verdict.choice_ids) >= 2:
            raise BundleError(
                f"template {name!r}: {len(verdict.choices)} verdict choices and {len(verdict.choice_ids)} ids, expected equal and >= 2"
            )
        if verdict is not None and len(set(verdict.choice_ids)) != len(verdict.choice_ids):
            raise BundleError(f"template {name!r} gives two verdict choices the same token id")
        if name == "pairwise_slow" and verdict is not None and len(verdict.choices) != 2:
            raise BundleError(f"template {name!r} has {len(verdict.choices)} choices, a pair needs exactly 2")
        if name == "pointwise_slow" and verdict is not None and len(verdict.values) != len(verdict.choices):
            raise BundleError(f"template {name!r}: {len(verdict.values)} values for {len(verdict.choices)} choices")
    scales = {"labels": tuple(x.value for x in manifest.labels)} | {
        n: t.verdict.values for n, t in manifest.templates.items() if t.verdict
    }
    for what, values in scales.items():
        if values and (not all(is_number(v) for v in values) or len(set(values)) == 1):
            raise BundleError(
                f"fsrm.json gives {what} the values {list(values)}, expected finite numbers that are not all equal"
            )
    ids = [x.id for x in manifest.labels] + list(manifest.special_tokens.values()) + list(manifest.stop_ids)
    ids += [i for t in manifest.templates.values() if t.verdict is not None for i in t.verdict.choice_ids]
    if any(not 0 <= i < manifest.vocab_size for i in ids):
        raise BundleError(f"fsrm.json names a token id outside the vocabulary of {manifest.vocab_size}")
