"""Reads from ``tokenizer.json`` what a GGUF file needs: token texts, types, merges and the name of the split.

The *split* is the rule by which a tokenizer cuts a text into pieces before it merges bytes into tokens; llama.cpp knows
each split by a name. This package hands llama.cpp token ids from the Hugging Face tokenizer, so its own results do not
depend on llama.cpp's tokenizer. But a GGUF file whose tokenizer gives other ids would mislead whoever opens the file
elsewhere, so an unknown split is refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Regex, pre_tokenizers
from tokenizers.decoders import ByteLevel
from tokenizers.pre_tokenizers import PreTokenizer

from fsrm_lite.checks import first_repeated
from fsrm_lite.errors import ExportError, UnsupportedCheckpointError

TOKENIZER_NAME = "tokenizer.json"

NORMAL, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 3, 4, 5, 6
"""Token types of the GGUF format (gguf.TokenType)."""

_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
PRE_BY_PATTERN = {
    rf"{_LETTERS}|\p{{N}}|{_REST}": "qwen2",
    rf"{_LETTERS}|\p{{N}}{{1,3}}|{_REST}": "llama-bpe",
    (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ): "tekken",
}
"""The patterns of splits in tokenizer.json, with llama.cpp's names of them (``tokenizer.ggml.pre``).

Source: the tokenizer.json of Qwen2/2.5/3, Llama 3 and Mistral-Nemo, and llama.cpp's src/llama-vocab.cpp. Two more
splits have no pattern there: "gpt-2" is the one built into ByteLevel, and "smollm" (SmolLM2) is the same after each
digit was cut off as a piece of its own.
"""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A byte-level BPE vocabulary in GGUF's terms.

    Attributes:
        tokens: Text of each id, as many as the model's vocabulary has; ordinary tokens in byte-level characters.
        types: GGUF token type per id.
        merges: ``"left right"``, in order of priority.
        pre: Name of the split, for ``tokenizer.ggml.pre``.
        bos: Id of the token that begins a text, or None.
        eos: Id of the token that ends one, or None.
        pad: Id of the padding token, or None.
        chat_template: How messages become a prompt, in jinja, or None.
        sentencepiece: Whether it is a SentencePiece vocabulary of a GGUF file, whose tokens are plain characters.
    """

    tokens: list[str]
    types: list[int]
    merges: list[str]
    pre: str
    bos: int | None = None
    eos: int | None = None
    pad: int | None = None
    chat_template: str | None = None
    sentencepiece: bool = False

    def text(self, token: int) -> str:
        """Return the text of a token as it stands in a text: byte-level characters become the bytes they stand for."""
        name = self.tokens[token]
        if self.types[token] != NORMAL:
            return name
        if self.sentencepiece:
            return name.replace("\u2581", " ")
        return ByteLevel().decode([name])


def read_vocabulary(root: Path, vocab_size: int) -> Vocabulary:
    """Read and check the tokenizer of a checkpoint folder.

    Args:
        root: Folder with ``tokenizer.json`` and perhaps ``tokenizer_config.json``, ``config.json``.
        vocab_size: Rows of the embedding; unnamed ids become ``[PAD{id}]``.

    Raises:
        ExportError: If the file is missing or broken, or names an id beyond the embedding.
        UnsupportedCheckpointError: If it is not a byte-level BPE with a known split.
    """
    data = read_json(root / TOKENIZER_NAME)
    if data is None:
        raise ExportError(
            f"{root} has no {TOKENIZER_NAME}; save the tokenizer there in the fast format (tokenizer.save_pretrained)"
        )
    try:
        pre = detect_pre(data)
        tokens, types = _tokens(data, vocab_size)
        merges = [m if isinstance(m, str) else _join_merge(*m) for m in data["model"]["merges"]]
        ids = {text: i for i, text in enumerate(tokens)}
    except (KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{root / TOKENIZER_NAME} is malformed ({error!r}); save the tokenizer again") from error
    named = _special_names(root, ids)
    return Vocabulary(
        tokens, types, merges, pre, named.get("bos"), named.get("eos"), named.get("pad"), chat_template_of(root)
    )


def detect_pre(data: dict[str, Any]) -> str:
    """Return llama.cpp's name of the split that a parsed ``tokenizer.json`` uses.

    Raises:
        UnsupportedCheckpointError: Naming the tokenizer type or the pattern.
    """
    model = data["model"]
    if model.get("type") != "BPE":
        raise UnsupportedCheckpointError(
            f"the tokenizer is of type {model.get('type')!r}; only byte-level BPE can be exported"
        )
    if model.get("byte_fallback"):
        raise UnsupportedCheckpointError(
            "the tokenizer is a SentencePiece-style BPE (byte_fallback); only byte-level BPE can be exported from a "
            "checkpoint; export a GGUF file of the model instead, with its tokenizer: fsrm-lite export model.gguf"
        )
    steps = _flatten(data.get("pre_tokenizer"), "pretokenizers")
    byte_level = [s for s in steps if s.get("type") == "ByteLevel"]
    splits = [s for s in steps if s.get("type") == "Split"]
    digits = [s for s in steps if s.get("type") == "Digits" and s.get("individual_digits")]
    if (
        len(byte_level) != 1
        or len(splits) + len(digits) > 1
        or len(steps) != len(byte_level) + len(splits) + len(digits)
    ):
        names = ", ".join(str(s.get("type")) for s in steps) or "none"
        raise UnsupportedCheckpointError(
            f"the tokenizer's pre-tokenizer ({names}) is not known; "
            "expected ByteLevel, alone or behind a Split or single Digits"
        )
    if byte_level[0].get("add_prefix_space"):
        raise UnsupportedCheckpointError(
            "the tokenizer adds a space before each text (add_prefix_space), which llama.cpp would not do"
        )
    if not splits:
        if not byte_level[0].get("use_regex", True):
            raise UnsupportedCheckpointError(
                "the tokenizer's pre-tokenizer does not split at all, which llama.cpp cannot do"
            )
        return "smollm" if digits else "gpt-2"
    pattern = splits[0]["pattern"].get("Regex")
    behaves = (
        splits[0].get("behavior") == "Isolated"
        and not splits[0].get("invert")
        and not byte_level[0].get("use_regex", True)
    )
    if pattern not in PRE_BY_PATTERN or not behaves:
        raise UnsupportedCheckpointError(
            f"the tokenizer's split {pattern!r} is not known; known: Qwen, Llama 3, Mistral-Nemo, GPT-2"
        )
    return PRE_BY_PATTERN[pattern]


def pre_tokenizer(pre: str) -> PreTokenizer:
    """Return the split that llama.cpp calls ``pre``, in the form that ``detect_pre`` recognises.

    Raises:
        UnsupportedCheckpointError: If the name is not known.
    """
    patterns = {name: pattern for pattern, name in PRE_BY_PATTERN.items()}
    if pre in patterns:
        split = pre_tokenizers.Split(Regex(patterns[pre]), behavior="isolated")
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pre == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    if pre == "gpt-2":
        return byte_level
    raise UnsupportedCheckpointError(
        f"the split {pre!r} is not known, expected one of {', '.join([*patterns, 'smollm', 'gpt-2'])}"
    )


def _flatten(step: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if step is None:
        return []
    return [s for child in step[key] for s in _flatten(child, key)] if step.get("type") == "Sequence" else [step]


def _tokens(data: dict[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    """Return the text and the GGUF type of each id below ``vocab_size``; ids without a token get a placeholder."""
    texts = token_texts(data)
    types = dict.fromkeys(texts, NORMAL)
    types |= {t["id"]: CONTROL if t["special"] else USER_DEFINED for t in data.get("added_tokens") or ()}
    highest = max(texts)
    if highest >= vocab_size:
        raise ExportError(
            f"{TOKENIZER_NAME} gives {texts[highest]!r} the id {highest}, but the embedding has only {vocab_size} rows"
        )
    tokens = [texts.get(i, f"[PAD{i}]") for i in range(vocab_size)]
    # On a duplicate, llama.cpp would abort the whole process.
    if (double := first_repeated(tokens)) is not None:
        raise ExportError(f"{TOKENIZER_NAME} has the token {double!r} twice (unused ids are named [PAD<id>])")
    return tokens, [types.get(i, UNUSED) for i in range(vocab_size)]


def token_texts(data: dict[str, Any]) -> dict[int, str]:
    """Return the text of each token of a parsed ``tokenizer.json``, by id.

    Raises:
        ExportError: If two tokens of the vocabulary have the same id.
    """
    texts: dict[int, str] = {}
    for text, token_id in data["model"]["vocab"].items():
        if token_id in texts:
            raise ExportError(f"{TOKENIZER_NAME} gives both {texts[token_id]!r} and {text!r} the id {token_id}")
        texts[token_id] = text
    return texts | {token["id"]: token["content"] for token in data.get("added_tokens") or ()}


def _join_merge(left: str, right: str) -> str:
    # A byte-level alphabet has no plain space, so one inside a part could only come from a hand-made file.
    if " " in left + right:
        raise ExportError(f"{TOKENIZER_NAME} has a merge with a plain space in it, {[left, right]!r}")
    return f"{left} {right}"


def _special_names(root: Path, ids: dict[str, int]) -> dict[str, int]:
    """Return the ids of bos, eos and pad, as far as they are known.

    Their texts are looked up in tokenizer_config.json, else their ids in config.json.
    """
    tokenizer_config = read_json(root / "tokenizer_config.json") or {}
    config = read_json(root / "config.json") or {}
    found: dict[str, int] = {}
    for kind in ("bos", "eos", "pad"):
        entry = tokenizer_config.get(f"{kind}_token")
        text = entry.get("content") if isinstance(entry, dict) else entry
        number = config.get(f"{kind}_token_id")
        number = number[0] if isinstance(number, list) and number else number
        if text in ids:
            found[kind] = ids[text]
        elif isinstance(number, int) and 0 <= number < len(ids):
            found[kind] = number
    return found


def has_chat_template(root: Path) -> bool:
    """Return whether a checkpoint folder has a chat template."""
    return chat_template_of(root) is not None


def chat_template_of(root: Path) -> str | None:
    """Return the chat template, or None. It lies where transformers keeps it.

    That is chat_template.jinja, else tokenizer_config.json; of several templates there, the one named "default".
    """
    path = root / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise ExportError(f"{path} is not UTF-8: {error}") from error
    found = (read_json(root / "tokenizer_config.json") or {}).get("chat_template")
    if isinstance(found, list):
        found = next(
            (entry.get("template") for entry in found if isinstance(entry, dict) and entry.get("name") == "default"),
            None,
        )
    return found if isinstance(found, str) and found.strip() else None


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file, or None where there is no such file."""
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ExportError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise ExportError(f"{path} holds a {type(data).__name__}, expected an object")
    return data
