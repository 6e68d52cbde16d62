"""Tiny encoders as optimum writes them: an ONNX folder with a WordPiece or a unigram tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = ["how", "much", "is", "and", "it", "the", "answer", "yes", "no", "do", "not", "know", "i", ".", "?", "[", "]"]
WORDS += [*"0123456789abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "0123456789abcdefghijklmnopqrstuvwxyz")]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WIDTH = 6


def write_encoder(
    path: Path, *, vocab: int, types: bool = True, outputs: int = 1, external: bool = False, seed: int = 0
):
    """Write a graph: token and type vectors, a tanh, their mean over what is not padding, and a linear map.

    Returns a function from ids and types to what the graph must give for one text.
    """
    rng = np.random.default_rng(seed)
    weights = {
        "tokens": rng.standard_normal((vocab, WIDTH)).astype(np.float32),
        "kinds": rng.standard_normal((2, WIDTH)).astype(np.float32),
        "head": rng.standard_normal((WIDTH, outputs)).astype(np.float32),
        "last": np.array([2], np.int64),
        "one": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["tokens", "input_ids"], ["x0"]),
        *([helper.make_node("Gather", ["kinds", "token_type_ids"], ["k"])] if types else []),
        *([helper.make_node("Add", ["x0", "k"], ["x1"])] if types else [helper.make_node("Identity", ["x0"], ["x1"])]),
        helper.make_node("Tanh", ["x1"], ["x2"]),
        helper.make_node("Cast", ["attention_mask"], ["m0"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["m0", "last"], ["m1"]),
        helper.make_node("Mul", ["x2", "m1"], ["x3"]),
        helper.make_node("ReduceSum", ["x3", "one"], ["s"], keepdims=0),
        helper.make_node("ReduceSum", ["m1", "one"], ["n"], keepdims=0),
        helper.make_node("Div", ["s", "n"], ["mean"]),
        helper.make_node("MatMul", ["mean", "head"], ["logits"]),
    ]
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if types else [])]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", "tokens"]) for n in names],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", outputs])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = {"save_as_external_data": True, "location": f"{path.name}_data", "size_threshold": 64} if external else {}
    onnx.save(model, str(path), **options)

    def expected(ids, kinds) -> np.ndarray:
        x = weights["tokens"][ids] + (weights["kinds"][kinds] if types else 0)
        return np.tanh(x).mean(axis=0) @ weights["head"]

    return expected


def word_pieces() -> Tokenizer:
    """A tokenizer in BERT's form: ``[CLS] first [SEP] second [SEP]``."""
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(SPECIAL + WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def unigrams() -> Tokenizer:
    """A tokenizer in the form of DeBERTa-v3 and XLM-R, whose control tokens are pieces of its vocabulary."""
    pieces = [(token, 0.0) for token in SPECIAL]
    pieces += [("\u2581", -2.0), ("\u2581is", -3.0), ("is", -3.5), ("\u2581it", -3.2)]
    pieces += [(c, -5.0 - 0.01 * i) for i, c in enumerate("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.?[]=+")]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=1, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def make_onnx_folder(folder: Path, tokenizer: Tokenizer | None = None, **graph):
    """Write an ONNX folder as optimum does; return what ``write_encoder`` returns."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer or word_pieces()
    expected = write_encoder(folder / "model.onnx", vocab=tokenizer.get_vocab_size(), **graph)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"model_type": "bert", "hidden_size": WIDTH, "num_hidden_layers": 1, "max_position_embeddings": 512}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 128}))
    return expected
