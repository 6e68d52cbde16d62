"""The tokenizer of a GGUF file as ``tokenizer.json``: built from the file's tokens, or given and compared with them.

Two kinds can be built: byte-level BPE (llama.cpp's "gpt2"), from tokens and merges, and SentencePiece BPE ("llama"),
whose merges follow from the scores. Whatever comes out is compared with llama.cpp's own tokenizer on texts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from shutil import copyfile
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from fsrm_lite.bundle.encoder import PromptEncoder
from fsrm_lite.errors import ExportError, UnsupportedCheckpointError, as_ours, missing_extra
from fsrm_lite.export.checkpoints.vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    TOKENIZER_NAME,
    UNUSED,
    Vocabulary,
    chat_template_of,
    pre_tokenizer,
    read_json,
    token_texts,
)
from fsrm_lite.runtimes.llama.native import LlamaTokenizer

SPACE = "\u2581"
"""What SentencePiece writes for a space."""

_TRICKY = (
    " a  b   c\t\te\n\n\nf \n g\r\n h $1,234.56 -7e-10 x's X'LL ",
    "for (int i = 0; i < n; ++i) { a[i] += 1024; }",
    "na\u00efve caf\u00e9 \u00bd \u4e2d\u6587 \u0440\u0443\u0441\u0441\u043a\u0438\u0439 \U0001f600",
)


def read_entries(path: Path) -> dict[str, Any]:
    """Return the metadata of a GGUF file, arrays included.

    Raises:
        ExportError: If it is missing or damaged.
        MissingExtraError: If gguf is not installed.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise missing_extra("gguf", "export", error) from error
    try:
        return {name: field.contents() for name, field in GGUFReader(str(path)).fields.items()}
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ExportError(f"{path} cannot be read as GGUF: {error}") from error


def vocabulary_of(entries: Mapping[str, Any], chat_template: str | None) -> Vocabulary:
    """Return the vocabulary that a file's metadata describe, with a chat template."""

    def special(name: str) -> int | None:
        token = entries.get(f"tokenizer.ggml.{name}_token_id")
        return None if token is None else int(token)

    tokens = entries["tokenizer.ggml.tokens"]
    return Vocabulary(
        tokens,
        _types(entries),
        entries.get("tokenizer.ggml.merges") or [],
        entries.get("tokenizer.ggml.pre", ""),
        special("bos"),
        special("eos"),
        special("padding"),
        chat_template,
        sentencepiece=entries.get("tokenizer.ggml.model") == "llama",
    )


def write_tokenizer(folder: Path, entries: Mapping[str, Any]) -> None:
    """Write ``tokenizer.json``, built from a file's metadata, and ``tokenizer_config.json`` with the chat template.

    Raises:
        UnsupportedCheckpointError: If no such tokenizer can be built.
    """
    kind = entries.get("tokenizer.ggml.model")
    build = {"gpt2": _byte_level, "llama": _sentencepiece}.get(str(kind))
    if build is None:
        raise UnsupportedCheckpointError(
            f"the file's tokenizer is {kind!r}; only byte-level BPE ('gpt2') and SentencePiece BPE ('llama') can be "
            f"brought back; name the folder of the model's own {TOKENIZER_NAME} with --tokenizer"
        )
    tokens, types = entries["tokenizer.ggml.tokens"], _types(entries)
    with as_ours(UnsupportedCheckpointError, "the tokenizer of the GGUF file cannot be built from its tokens"):
        tokenizer = build(entries)
    # Everything but ordinary and byte tokens is found in the text as a whole, before it is split.
    added = [(text, kind) for text, kind in zip(tokens, types, strict=True) if NORMAL < kind < UNUSED]
    tokenizer.add_tokens([AddedToken(text, special=kind == CONTROL, normalized=False) for text, kind in added])
    tokenizer.save(str(folder / TOKENIZER_NAME))
    _write_config(folder, entries)


def take_tokenizer(folder: Path, given: Path, entries: Mapping[str, Any], gguf_path: Path) -> None:
    """Copy a given tokenizer, after comparing its tokens with those of a GGUF file one by one.

    Args:
        folder: Where it is copied to. A chat template comes along; the file's own is taken where there is none.
        given: Folder with ``tokenizer.json``, or that file.
        entries: The GGUF file's metadata.
        gguf_path: The GGUF file, for messages.

    Raises:
        ExportError: If there is no such file, or a token differs; the message names the first one.
        UnsupportedCheckpointError: If it puts a space before each text.
    """
    path = given if given.is_file() else given / TOKENIZER_NAME
    data = read_json(path)
    if data is None:
        raise ExportError(f"there is no {path}; expected a folder with {TOKENIZER_NAME}")
    tokens, types = entries["tokenizer.ggml.tokens"], _types(entries)
    try:
        texts = token_texts(data)
    except (KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{path} is malformed ({error!r}); save the tokenizer again") from error
    for token in range(max(len(tokens), max(texts, default=-1) + 1)):
        own = tokens[token] if token < len(tokens) else None
        unused = own is not None and token not in texts and types[token] == UNUSED
        if texts.get(token) != own and not unused:
            raise ExportError(
                f"token {token} is {texts.get(token)!r} in {path} and {own!r} in {gguf_path}; "
                "give the tokenizer of this very model"
            )
    if _adds_space(data):
        raise UnsupportedCheckpointError(
            f"{path} puts a space before each text, also within a prompt; only tokenizers that add nothing can be used"
        )
    copyfile(path, folder / TOKENIZER_NAME)
    _write_config(folder, entries)
    template = chat_template_of(path.parent)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, "utf-8")


def first_text_read_otherwise(encoder: PromptEncoder, own: LlamaTokenizer, texts: Sequence[str]) -> str | None:
    """Return the first text of which ``tokenizer.json`` makes other ids than llama.cpp; None if there is none."""
    return next((text for text in (*texts, *_TRICKY) if encoder.encode_text(text) != own.tokenize(text)), None)


def _types(entries: Mapping[str, Any]) -> list[int]:
    """Return the type of each token; a file without types has ordinary tokens only."""
    return entries.get("tokenizer.ggml.token_type") or [NORMAL] * len(entries["tokenizer.ggml.tokens"])


def _byte_level(entries: Mapping[str, Any]) -> Tokenizer:
    tokens, types = entries["tokenizer.ggml.tokens"], _types(entries)
    pre = entries.get("tokenizer.ggml.pre", "gpt-2")
    split = pre_tokenizer(pre)
    merges = [tuple(merge.split(" ")) for merge in entries["tokenizer.ggml.merges"]]
    vocabulary = {text: i for i, (text, kind) in enumerate(zip(tokens, types, strict=True)) if kind != UNUSED}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre == "llama-bpe"))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(entries: Mapping[str, Any]) -> Tokenizer:
    """Build a SentencePiece BPE, which joins the two neighbours whose token has the highest score.

    Source: transformers, convert_slow_tokenizer.py, ``generate_merges``; llama.cpp, src/llama-vocab.cpp,
    ``llm_tokenizer_spm``.
    """
    if entries.get("tokenizer.ggml.add_space_prefix", True):
        raise UnsupportedCheckpointError(
            "the file's tokenizer puts a space before each text (tokenizer.ggml.add_space_prefix), also within a "
            "prompt; only tokenizers that add nothing can be used"
        )
    tokens, types = entries["tokenizer.ggml.tokens"], _types(entries)
    scores = entries["tokenizer.ggml.scores"]
    plain = {text: i for i, (text, kind) in enumerate(zip(tokens, types, strict=True)) if kind == NORMAL}
    joined = sorted(
        (-scores[token], plain[text[:cut]], plain[text[cut:]])
        for text, token in plain.items()
        for cut in range(1, len(text))
        if text[:cut] in plain and text[cut:] in plain
    )
    merges = [(tokens[left], tokens[right]) for _, left, right in joined]
    vocabulary = {text: i for i, (text, kind) in enumerate(zip(tokens, types, strict=True)) if kind != UNUSED}
    unknown = entries.get("tokenizer.ggml.unknown_token_id")
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges,
            byte_fallback=BYTE in types,
            fuse_unk=True,
            unk_token=None if unknown is None else tokens[int(unknown)],
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _adds_space(data: Mapping[str, Any]) -> bool:
    """Return whether a parsed ``tokenizer.json`` puts a space before each text that it is given."""

    def steps(step: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
        if step is None:
            return []
        inner = step.get("pretokenizers") or step.get("normalizers")
        return [one for child in inner for one in steps(child)] if inner else [step]

    return any(
        step.get("type") == "Prepend"
        or step.get("add_prefix_space")
        or (step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never")
        for step in (*steps(data.get("normalizer")), *steps(data.get("pre_tokenizer")))
    )


def _write_config(folder: Path, entries: Mapping[str, Any]) -> None:
    tokens = entries["tokenizer.ggml.tokens"]
    names = {
        f"{name}_token": tokens[int(entries[f"tokenizer.ggml.{key}_token_id"])]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if f"tokenizer.ggml.{key}_token_id" in entries
    }
    template = entries.get("tokenizer.chat_template")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **names,
        **({} if template is None else {"chat_template": template}),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", "utf-8")
