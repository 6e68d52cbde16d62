"""``fsrm.json``, the manifest of a bundle: what is in it, and the checks when it is read.

The manifest alone says which tokens mean what. The ids of labels and verdicts are looked up when a model is exported
and are written down here, so that a token's meaning is never guessed later. The files on disk are the business of
``fsrm_lite.bundle.files``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fsrm_lite.bundle.role_forms import RoleForms
from fsrm_lite.checks import expect, expect_decoding, is_number, is_whole
from fsrm_lite.errors import BundleError, GateSpecError
from fsrm_lite.gate import GateSpec
from fsrm_lite.types import ANSWER_TOKENS, EncoderInput

MANIFEST_NAME = "fsrm.json"
"""The file of a bundle that holds its manifest."""

FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)
"""Version 1 has no ``conversation``, and its templates no ``{conversation}``."""

SLOTS = {
    "pointwise_fast": frozenset({"response"}),
    "pairwise_fast": frozenset({"response_a", "response_b"}),
    "pointwise_slow": frozenset({"response"}),
    "pairwise_slow": frozenset({"response_a", "response_b"}),
    "solve": frozenset[str](),
}
"""The templates that a manifest may have, and the slots for responses that each must name exactly once.

Beside them each names one of ``ASKED`` once. A manifest needs one of the two fast templates.
"""

HEADS = ("vocabulary", "scalar")
"""What stands on the fast model's last hidden state: the logits of all tokens, or one number, the reward."""

ASKED = ("prompt", "conversation")
"""The slots for what was asked: as one text, or as the model's chat template writes messages.

A template for one response may have ``{conversation}`` alone: the response is then its last message, the assistant's.
"""

_SLOT = re.compile(r"\{\{(?:\w*)\}\}|\{(\w*)\}")
"""A slot; or its escape, ``{{word}}``, which stands for the text ``{word}`` and is found first."""


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
        several: What counts if the judge writes verdicts that contradict each other: the "last" one, or "none".
    """

    close: str
    prefix: str
    choices: tuple[str, ...]
    choice_ids: tuple[int, ...]
    suffix: str = ""
    values: tuple[float, ...] = ()
    several: str = "last"


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
    """Sizes that the model was made for, in tokens.

    Attributes:
        context: What it can read and write in all.
        thinking_tokens: The longest thought.
        verdict_tokens: How far behind a thought its verdict may stand.
    """

    context: int
    thinking_tokens: int
    verdict_tokens: int = ANSWER_TOKENS

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
        expect(
            is_whole(self.verdict_tokens) and self.verdict_tokens >= 1,
            "limits.verdict_tokens",
            self.verdict_tokens,
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
        labels: Labels with which the fast model answers about one response, at least two; none where it has a scalar
            head or reads pairs only.
        templates: By name; see ``SLOTS``.
        special_tokens: From text to id, for every control token that a template or verdict may use.
        stop_ids: Ids at which a text that the model writes ends.
        limits: Sizes of the context and of a thought.
        vocab_size: Number of tokens in the model's output distribution.
        gate: Settings of the gate.
        judge: How the judge writes by default.
        head: One of ``HEADS``.
        pair_labels: The two labels with which the fast model chooses from a pair, that of the first response first;
            empty without the template ``pairwise_fast``. Their values mean nothing.
        conversation: How the model's chat template writes messages; None where no template needs it.
        encoder: Set where the fast file is an encoder with one output; then the head is a scalar one.
        files: By role: ``tokenizer``, ``fast``; optional are ``fast_data``, ``slow``, and ``judge``, the manifest of a
            bundle within this one, which then has the templates, the stops and the limits of slow thinking.
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
    head: str = "vocabulary"
    pair_labels: tuple[Label, ...] = ()
    conversation: RoleForms | None = None
    encoder: EncoderInput | None = None
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fast_label_ids(self) -> list[int]:
        """Ids of the tokens whose logits the fast graph gives: those of ``labels``, then those of ``pair_labels``."""
        return [label.id for label in (*self.labels, *self.pair_labels)]

    @property
    def writes(self) -> bool:
        """Whether a template asks for a text: for a thought, or for an answer to a question."""
        return any(name.endswith("_slow") or name == "solve" for name in self.templates)

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
        if isinstance(version, bool) or version not in READABLE_VERSIONS:
            raise BundleError(
                f"fsrm.json has format_version {version!r}, this package reads "
                f"{' and '.join(map(str, READABLE_VERSIONS))}; install a matching fsrm-lite"
            )
        try:
            manifest = _parse(data)
            _check(manifest)
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError, GateSpecError) as error:
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
            "limits": {name: getattr(self.limits, name) for name in Limits.__dataclass_fields__},
            "vocab_size": self.vocab_size,
            "gate": self.gate.to_dict(),
            "judge": {name: getattr(self.judge, name) for name in JudgeDefaults.__dataclass_fields__},
            "head": self.head,
            "pair_labels": [{"text": x.text, "id": x.id} for x in self.pair_labels],
            **({} if self.conversation is None else {"conversation": self.conversation.to_dict()}),
            **({} if self.encoder is None else {"encoder": asdict(self.encoder)}),
            "files": {role: {"path": f.path, "bytes": f.bytes, "sha256": f.sha256} for role, f in self.files.items()},
            "card": dict(self.card),
        }


def template_parts(text: str) -> list[tuple[str, str]]:
    """Split a template at its slots: (text, name of the slot behind it) each, with an empty name at the end.

    An escaped slot, ``{{word}}``, becomes the text ``{word}``.
    """
    parts, before, position = [], "", 0
    for match in _SLOT.finditer(text):
        before += text[position : match.start()]
        position = match.end()
        if match[1] is None:
            before += match[0][1:-1]
        else:
            parts.append((before, match[1]))
            before = ""
    return [*parts, (before + text[position:], "")]


def template_slots(text: str) -> list[str]:
    """Return the slot names of a template in order, for example ``["prompt", "response"]``."""
    return [slot for _, slot in template_parts(text)[:-1]]


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
    known = [*ASKED, *sorted(SLOTS[name])]
    for slot in slots:
        if slot not in known:
            raise BundleError(
                f"template {name!r} names the unknown slot {{{slot}}}, expected {', '.join(known)}; "
                f"if it is text, write {{{{{slot}}}}}"
            )
    asked = sum(slots.count(slot) for slot in ASKED)
    if asked != 1:
        raise BundleError(
            f"template {name!r} names {{prompt}} and {{conversation}} {asked} times, expected one of them once"
        )
    for slot in sorted(SLOTS[name]):
        implied = slot == "response" and "conversation" in slots  # it may be the conversation's last message
        if slots.count(slot) > 1 or (not implied and slots.count(slot) != 1):
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
        head=str(data.get("head", "vocabulary")),
        pair_labels=tuple(Label(str(x["text"]), int(x["id"]), 0.0) for x in data.get("pair_labels", ())),
        conversation=RoleForms.from_dict(data["conversation"]) if data.get("conversation") is not None else None,
        encoder=_parse_encoder(data.get("encoder")),
        files={role: FileEntry(str(f["path"]), int(f["bytes"]), str(f["sha256"])) for role, f in data["files"].items()},
        card=dict(data.get("card", {})),
    )


def _parse_encoder(data: dict[str, Any] | None) -> EncoderInput | None:
    """Return how the input of an encoder is made, from its JSON form."""
    if data is None:
        return None
    separator = data.get("separator_id")
    return EncoderInput(int(data["pad_id"]), None if separator is None else int(separator))


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
            several=str(raw.get("several", "last")),
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
            **({"several": v.several} if v.several != "last" else {}),
        }
    return data


def _check_head(manifest: Manifest) -> None:
    """Raise a ``BundleError`` unless templates and labels fit the head of the fast model."""
    single, pair = ("pointwise_fast" in manifest.templates, "pairwise_fast" in manifest.templates)
    if manifest.head not in HEADS:
        raise BundleError(f"fsrm.json has the head {manifest.head!r}, expected one of {', '.join(HEADS)}")
    if not single and not pair:
        raise BundleError(
            "fsrm.json has no template 'pointwise_fast' and no 'pairwise_fast'; every bundle needs one of them"
        )
    if manifest.encoder is not None and manifest.head != "scalar":
        raise BundleError("fsrm.json describes an encoder, whose head is a scalar one; expected the head 'scalar'")
    if manifest.head == "scalar":
        if not single or pair or manifest.labels:
            raise BundleError(
                "fsrm.json has a scalar head, which reads one response and has no labels; "
                "expected the template 'pointwise_fast', no 'pairwise_fast', and no labels"
            )
        return
    if single and len(manifest.labels) < 2:
        raise BundleError(f"fsrm.json has {len(manifest.labels)} labels, expected at least 2")
    if pair and len(manifest.pair_labels) != 2:
        raise BundleError(f"fsrm.json has {len(manifest.pair_labels)} pair_labels, expected 2")
    for labels in (manifest.labels, manifest.pair_labels):
        if len({x.id for x in labels}) != len(labels):
            raise BundleError("fsrm.json gives two labels the same token id")


def _check(manifest: Manifest) -> None:
    """Raise a ``BundleError`` unless the manifest's entries fit together."""
    _check_head(manifest)
    for name, template in manifest.templates.items():
        check_template(name, template.text)
        if "conversation" in template_slots(template.text) and manifest.conversation is None:
            raise BundleError(f"template {name!r} has a {{conversation}}, and fsrm.json has no 'conversation' forms")
        verdict = template.verdict
        if name.endswith("_slow") and verdict is None:
            raise BundleError(f"template {name!r} has no verdict form; a slow template needs one")
        if verdict is not None and not verdict.close.strip():
            raise BundleError(
                f"template {name!r} has a verdict with an empty 'close'; the judge could not tell thought from verdict"
            )
        if verdict is not None and not len(verdict.choices) == len(verdict.choice_ids) >= 2:
            raise BundleError(
                f"template {name!r}: {len(verdict.choices)} verdict choices and {len(verdict.choice_ids)} ids, "
                "expected equal and >= 2"
            )
        if verdict is not None and len(set(verdict.choice_ids)) != len(verdict.choice_ids):
            raise BundleError(f"template {name!r} gives two verdict choices the same token id")
        if verdict is not None and verdict.several not in ("last", "none"):
            raise BundleError(f"template {name!r}: 'several' is {verdict.several!r}, expected 'last' or 'none'")
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
    ids = manifest.fast_label_ids + list(manifest.special_tokens.values()) + list(manifest.stop_ids)
    if manifest.encoder is not None:
        ids += [i for i in (manifest.encoder.pad_id, manifest.encoder.separator_id) if i is not None]
    ids += [i for t in manifest.templates.values() if t.verdict is not None for i in t.verdict.choice_ids]
    if any(not 0 <= i < manifest.vocab_size for i in ids):
        raise BundleError(f"fsrm.json names a token id outside the vocabulary of {manifest.vocab_size}")
