import json

import pytest
from helpers import SHARED
from helpers.export import LLAMA_SPLIT, QWEN_SPLIT, build_tokenizer, make_checkpoint, write_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from fsrm_lite.errors import ExportError, UnsupportedCheckpointError
from fsrm_lite.export.checkpoints.vocabulary import (
    CONTROL,
    NORMAL,
    PRE_BY_PATTERN,
    UNUSED,
    USER_DEFINED,
    detect_pre,
    read_vocabulary,
)
from fsrm_lite.runtimes.llama.engine import load_llama

GPT2 = SHARED / "gpt2-tokenizer"
TEKKEN_SPLIT = next(pattern for pattern, pre in PRE_BY_PATTERN.items() if pre == "tekken")

TEXTS = [
    "The quick brown fox can't jump over 12345 lazy dogs; it's 3.14159 o'clock, I'LL say.",
    "Zażółć gęślą jaźń. Příliš žluťoučký kůň. Ünïcödé façade naïve Straße",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. Ελληνικά και λατινικά",
    "敏捷的棕色狐狸跳过了懒狗。日本語のテキスト、カタカナとひらがな。한국어 문장입니다 ١٢٣ १२३",
    "שלום עולם مرحبا بالعالم हिन्दी में पाठ ภาษาไทย তৃতীয়",
    "😀👩‍👩‍👧‍👦🏳️‍🌈 emoji 🚀🚀 mixed👍🏽text ☃️ ∑∫√ ½ ² ™",
    "def f(x: int) -> str:\n    return f'{x!r:>10}'  # comment\n\n\nclass A:\n\tpass\r\n",
    "for (int i = 0; i < n; ++i) { a[i] += b[i]->c; } // <<= >>= != ===\n#include <stdio.h>",
    "a  b   c    d\t\te\n\n\nf \n g  \r\n\r\n h     ",
    "   leading and trailing   ",
    "\u00a0non-breaking\u2003em space\u200bzero width\u3000ideographic",
    "ab\u0301c e\u0301 \u1100\u1161\u11a8 combining",
    "https://example.com/a?b=c&d=%20#e user@host.org $1,234.56 -7e-10 0xDEADBEEF",
    "'s 't 're 've 'm 'll 'd 'S 'T x's X'LL",
    "\x00\x01\x7f control \ufffd replacement",
    "<|im_end|><|im_start|>assistant\nYes</think>",
]


@pytest.fixture(scope="module")
def llama_ids(tmp_path_factory):
    """A function that exports a tokenizer as a GGUF file; its result turns texts into the ids that llama.cpp reads."""
    pytest.importorskip("gguf")
    pytest.importorskip("torch")
    pytest.importorskip("llama_cpp")
    # load_llama silences llama.cpp for good. A log callback made here would be freed with this fixture, and llama.cpp
    # would call it later.
    llama_cpp = load_llama()
    from fsrm_lite.export.checkpoints.checkpoint import Checkpoint
    from fsrm_lite.export.gguf.writer import write_gguf

    def load(tokenizer):
        size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 9
        shape = {"vocab_size": size, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 16}
        shape |= {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}
        folder = make_checkpoint(tmp_path_factory.mktemp("vocab"), "qwen3", spec=None, **shape)
        write_tokenizer(folder, tokenizer)
        checkpoint = Checkpoint.open(folder)
        write_gguf(checkpoint, read_vocabulary(folder, size), folder / "m.gguf", dtype="f16")
        model = llama_cpp.Llama(str(folder / "m.gguf"), vocab_only=True, verbose=False)
        return lambda text: model.tokenize(text.encode(), add_bos=False, special=False)

    return load


def plain_ids(tokenizer, text):
    tokenizer.encode_special_tokens = True
    return tokenizer.encode(text, add_special_tokens=False).ids


def gpt2_tokenizer():
    if not GPT2.is_dir():
        pytest.skip(f"no GPT-2 tokenizer at {GPT2}")
    tokenizer = Tokenizer(models.BPE.from_file(str(GPT2 / "vocab.json"), str(GPT2 / "merges.txt")))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return tokenizer


def test_gpt2_ids_are_those_of_llama_cpp(llama_ids):
    tokenizer = gpt2_tokenizer()
    read = llama_ids(tokenizer)
    assert tokenizer.get_vocab_size() == 50_259
    assert [read(text) for text in TEXTS] == [plain_ids(tokenizer, text) for text in TEXTS]


@pytest.mark.parametrize(
    ("split", "pre"), [(QWEN_SPLIT, "qwen2"), (LLAMA_SPLIT, "llama-bpe"), (TEKKEN_SPLIT, "tekken"), (None, "gpt-2")]
)
def test_ids_of_each_split_are_those_of_llama_cpp(split, pre, llama_ids):
    tokenizer = build_tokenizer(split)
    tokenizer.normalizer = None  # llama.cpp does not normalize characters; the package hands it ids
    assert detect_pre(json.loads(tokenizer.to_str())) == pre
    read = llama_ids(tokenizer)
    assert [read(text) for text in TEXTS[:-1]] == [plain_ids(tokenizer, text) for text in TEXTS[:-1]]


def test_read_vocabulary_fills_holes_and_types_tokens(tmp_path):
    tokenizer = build_tokenizer()
    write_tokenizer(tmp_path, tokenizer)
    vocabulary = read_vocabulary(tmp_path, 500)
    assert len(vocabulary.tokens) == len(set(vocabulary.tokens)) == len(vocabulary.types) == 500
    by_text = dict(zip(vocabulary.tokens, vocabulary.types, strict=True))
    assert by_text["<|im_end|>"] == CONTROL
    assert by_text["<think>"] == USER_DEFINED
    assert by_text["Yes"] == NORMAL
    assert by_text["[PAD499]"] == UNUSED
    assert vocabulary.tokens[vocabulary.eos] == "<|im_end|>"
    assert vocabulary.tokens[vocabulary.pad] == "<|endoftext|>"
    assert vocabulary.bos is None
    assert all(merge.count(" ") == 1 for merge in vocabulary.merges)


def test_read_vocabulary_takes_merges_in_both_forms(tmp_path):
    write_tokenizer(tmp_path, build_tokenizer())
    expected = read_vocabulary(tmp_path, 500)
    path = tmp_path / "tokenizer.json"
    data = json.loads(path.read_text())
    data["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in data["model"]["merges"]]
    path.write_text(json.dumps(data))
    assert read_vocabulary(tmp_path, 500) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"type": "WordPiece"}}, "type 'WordPiece'; only byte-level BPE"),
        ({"model": {"type": "BPE", "byte_fallback": True}}, "SentencePiece-style BPE .* export a GGUF file"),
        ({"pre_tokenizer": {"type": "Metaspace"}}, r"pre-tokenizer \(Metaspace\) is not known"),
        ({"pre_tokenizer": None}, r"pre-tokenizer \(none\) is not known"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "add_prefix_space"),
        (
            {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}},
            "does not split at all",
        ),
    ],
)
def test_detect_pre_refuses_by_name(change, message):
    data = {**json.loads(build_tokenizer().to_str()), **change}
    with pytest.raises(UnsupportedCheckpointError, match=message):
        detect_pre(data)


@pytest.mark.parametrize("content", ["[]", "{", '{"model": {}}', '{"model": {"type": "BPE"}}'])
def test_read_vocabulary_refuses_broken_files(content, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ExportError):
        read_vocabulary(tmp_path, 500)


def test_read_vocabulary_refuses_a_duplicate(tmp_path):
    write_tokenizer(tmp_path, build_tokenizer())
    path = tmp_path / "tokenizer.json"
    data = json.loads(path.read_text())
    data["added_tokens"].append({**data["added_tokens"][0], "id": 450})
    path.write_text(json.dumps(data))
    with pytest.raises(ExportError, match=r"has the token '<\|endoftext\|>' twice"):
        read_vocabulary(tmp_path, 500)
