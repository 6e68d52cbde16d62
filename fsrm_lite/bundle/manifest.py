"""``fsrm.json``, the manifest of a bundle: what is in it, and the checks when it is read.

The manifest alone says which tokens mean what. The ids of labels and verdicts are looked up when a model is exported
and are written down here, so that a token's meaning is never guessed later. The files on disk are the business of
``fsrm_lite.bundle.files``.
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
"""The templates that a manifest may have, and the slots that each must name exactly once. Only the first is needed."""

_SLOT = re.compile(r"\{(\w*)\}")


@dataclass(frozen=True, slots=True)
class Label:
    """One label of the fast model: a word such as "yes", its token id, and its numeric value.

    The fast score is made of the probabilities of the labels as the first token of an answer.
    """

    text: str
    id: int
    value: float


@dataclass(frozen=True, slots=True)
class VerdictTemplate:
    r"""How the judge's answer to a template ends: ``close + prefix + choice + suffix``.

    Attributes:
        close: Text that ends a thought, for example ``"</think>\n\n"``.
        prefix: Text between the end of the thought and the choice, for example ``"\\boxed{Assistant "``.
        choices: The words that the judge chooses from. For a pair: first response, then second.
        choice_ids: Token id of each choice as it stands after ``prefix``.
        suffix: Text after the choice.
        values: Numeric value of each choice; empty for a pair.
    """

    close: str
    prefix: str
    choices: tuple[str, ...]
    choice_ids: tuple[int, ...]
    suffix: str = ""
    values: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt template: text with ``{slots}`` and special tokens written out, and how the judge's answer ends."""

    text: str
    verdict: VerdictTemplate | None = None


@dataclass(frozen=True, slots=True)
class JudgeDefaults:
    """How the judge writes unless the caller says otherwise.

    Attributes:
        votes: Thoughts per pair *and order*, or per response.
        temperature: Sampling temperature; 0 is greedy.
        top_p: Keep the smallest set of likeliest tokens whose probability reaches this, in (0, 1]. It is applied after
            the temperature, as Hugging Face does.
        top_k: Keep the k likeliest tokens; 0 keeps all.
    """

    votes: int = 1
    temperature: float = 0.6
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        """Raise an ``InputError`` on values out of range."""
        expect_decoding(self.votes, self.temperature, self.top_p, self.top_k)


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes that the model was made for, in tokens: its context, and the longest thought."""

    context: int
    thinking_tokens: int

    def __post_init__(self) -> None:
        """Raise an ``InputError`` on values out of range."""
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
    """One file of the bundle: its path relative to the bundle's folder, its size in bytes, its SHA-256 in hex."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The contents of ``fsrm.json``.

    Attributes:
        name: Name of the model.
        labels: Labels of the fast model, at least two.
        templates: By name; see ``SLOTS``.
        special_tokens: From text to id, for every control token that a template or verdict may use.
        stop_ids: Ids at which a text that the model writes ends.
        limits: Sizes of the context and of a thought.
        vocab_size: Number of tokens in the model's output distribution.
        gate: Settings of the gate.
        judge: How the judge writes by default.
        files: By role: ``tokenizer``, ``fast``, ``fast_data`` (optional), ``slow`` (optional).
        card: ``license``, ``architecture``, ``provenance``, ``parity``, ``evaluation`` and the like. It is shown to
            people and changes nothing about scores.
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

        Args:
            data: What ``json.loads`` returned.

        Returns:
            The manifest.

        Raises:
            BundleError: On an unknown format version, an entry that is missing or of the wrong type, or a template with
                wrong slots.
        """
        if not isinstance(data, dict):
            raise BundleError(f"fsrm.json holds a {type(data).__name__}, expected an object")
        version = data.get("format_version")
        if version != FORMAT_VERSION:
            raise BundleError(
                f"fsrm.json has format_version {version!r}, this package reads {FORMAT_VERSION}; "
                "install a matching fsrm-lite"
            )
        try:
            manifest = _parse(data)
            _check(manifest)
        except (KeyError, TypeError, ValueError, AttributeError, GateSpecError) as error:
            what = f"entry {error} is missing" if isinstance(error, KeyError) else str(error)
            raise BundleError(f"fsrm.json is malformed: {what}") from error
        return manifest

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, from which ``from_dict`` makes an equal manifest."""
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
    """Raise unless the template is a known one and names each of its slots exactly once.

    Args:
        name: Name of the template.
        text: Its text.

    Raises:
        BundleError: If it is not; the message names the template and the slot.
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
    """Return the manifest that a JSON object describes. Whether its entries fit together is checked by ``_check``."""
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
    """Return a template from its JSON form."""
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
    """Return the JSON form of a template."""
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
    """Raise a ``BundleError`` unless the manifest's entries fit together."""
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
                f"template {name!r}: {len(verdict.choices)} verdict choices and {len(verdict.choice_ids)} ids, "
                "expected equal and >= 2"
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
