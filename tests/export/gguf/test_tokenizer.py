"""The tokenizer of a GGUF file: built from its tokens, or given and compared with them."""

import json

import pytest
from helpers.judge import write_tiny_gguf
from tokenizers import Tokenizer

from fsrm_lite.errors import ExportError, UnsupportedCheckpointError
from fsrm_lite.export.gguf.tokenizer import read_entries, take_tokenizer, write_tokenizer
from fsrm_lite.runtimes.llama.engine import LlamaModel

gguf = pytest.importorskip("gguf")
pytest.importorskip("llama_cpp")

KINDS = gguf.TokenType
WORDS = ["\u2581the", "\u2581he", "the", "he", "th", "\u2581t", "re", "\u2581there", "caf", "ca"]


def sentencepiece(path, *, prefix=False, unused=0):
    """A SentencePiece vocabulary of bytes, letters and a few words, each word the better the earlier it stands."""
    letters = [*"abcdefghijklmnopqrstuvwxyz.?!", "\u2581", "\u00e9"]
    tokens = ["<unk>", "<bos>", "<eos>", "<tool>", "\n\n", *(f"<0x{i:02X}>" for i in range(256)), *letters, *WORDS]
    types = [KINDS.UNKNOWN, KINDS.CONTROL, KINDS.CONTROL, KINDS.USER_DEFINED, KINDS.USER_DEFINED]
    types += [KINDS.BYTE] * 256 + [KINDS.NORMAL] * (len(letters) + len(WORDS))
    tokens += [f"[PAD{len(tokens) + i}]" for i in range(unused)]
    types += [KINDS.UNUSED] * unused
    scores = [0.0] * (len(tokens) - unused - len(WORDS)) + [-1.0 - i for i in range(len(WORDS))] + [0.0] * unused
    entries = [
        ("add_bos_token_id", 1),
        ("add_eos_token_id", 2),
        ("add_unk_token_id", 0),
        ("add_add_space_prefix", prefix),
    ]
    return write_tiny_gguf(
        path, vocab=len(tokens), tokens=tokens, types=types, scores=scores, tokenizer="llama", pre=None, entries=entries
    )


TEXTS = ["the there he", " there  the\n\nhe re", "caf\u00e9 \u4e2d \U0001f600 x", "", "thehethe", "\n \n\n\n", "   "]


def test_a_sentencepiece_vocabulary_reads_as_llama_cpp_does_and_back(tmp_path):
    path = sentencepiece(tmp_path / "model.gguf", unused=3)
    write_tokenizer(tmp_path, read_entries(path))
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    model = LlamaModel(path)
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == (model.tokenizer.tokenize(text) if text else [])
        assert tokenizer.decode(ids) == text
    model.close()
    assert tokenizer.encode("<bos>the").ids[0] == 1
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["eos_token"] == "<eos>"


def test_what_cannot_be_built_is_refused(tmp_path):
    path = sentencepiece(tmp_path / "model.gguf", prefix=True)
    with pytest.raises(UnsupportedCheckpointError, match="puts a space before each text"):
        write_tokenizer(tmp_path, read_entries(path))
    entries = read_entries(path) | {"tokenizer.ggml.model": "t5"}
    with pytest.raises(UnsupportedCheckpointError, match=r"the file's tokenizer is 't5'.*--tokenizer"):
        write_tokenizer(tmp_path, entries)
    with pytest.raises(ExportError, match="cannot be read as GGUF"):
        read_entries(tmp_path / "none.gguf")


def given(folder, change):
    data = json.loads((folder / "tokenizer.json").read_text())
    change(data)
    other = folder / "given"
    other.mkdir(exist_ok=True)
    (other / "tokenizer.json").write_text(json.dumps(data))
    return other


def test_a_given_tokenizer_is_compared_token_by_token(tmp_path):
    path = sentencepiece(tmp_path / "model.gguf", unused=3)
    entries = read_entries(path)
    write_tokenizer(tmp_path, entries)
    out = tmp_path / "out"
    out.mkdir()
    own = given(tmp_path, lambda data: None)
    (own / "chat_template.jinja").write_text("{{ messages }}")
    take_tokenizer(out, own, entries, path)
    assert (out / "chat_template.jinja").read_text() == "{{ messages }}"
    take_tokenizer(out, own / "tokenizer.json", entries, path)

    def swap(data):
        vocabulary = data["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]

    with pytest.raises(ExportError, match=r"token 261 is 'b' in .*tokenizer.json and 'a' in .*model.gguf"):
        take_tokenizer(out, given(tmp_path, swap), entries, path)
    with pytest.raises(ExportError, match=r"token 305 is 'more' in .* and None in"):
        take_tokenizer(out, given(tmp_path, lambda d: d["model"]["vocab"].update(more=305)), entries, path)
    with pytest.raises(ExportError, match=r"token 301 is None in .* and 'ca' in"):
        take_tokenizer(out, given(tmp_path, lambda d: d["model"]["vocab"].pop("ca")), entries, path)
    space = {"type": "Prepend", "prepend": "\u2581"}
    with pytest.raises(UnsupportedCheckpointError, match="puts a space before each text"):
        take_tokenizer(out, given(tmp_path, lambda d: d.update(normalizer=space)), entries, path)
    with pytest.raises(ExportError, match=r"there is no .*nowhere"):
        take_tokenizer(out, tmp_path / "nowhere", entries, path)
    with pytest.raises(ExportError, match="is malformed"):
        take_tokenizer(out, given(tmp_path, lambda d: d.pop("model")), entries, path)
