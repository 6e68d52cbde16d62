import json
from dataclasses import asdict

import numpy as np
import pytest
from helpers.export import build_model, make_checkpoint, write_transformers4_config

from fsrm_lite.errors import ExportError, UnsupportedCheckpointError
from fsrm_lite.export.checkpoints.checkpoint import EMBEDDING, HEAD, Architecture, Checkpoint
from fsrm_lite.export.checkpoints.tensors import row_slices

pytest.importorskip("torch")

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 20_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
PLAIN = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 1,
    "intermediate_size": 96,
    "vocab_size": 100,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 128,
    "rope_theta": 10_000.0,
}


@pytest.fixture
def llama(tmp_path):
    return make_checkpoint(tmp_path / "llama", "llama", spec=None)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    return make_checkpoint(
        tmp_path_factory.mktemp("ckpt") / "qwen3", "qwen3", dtype="bfloat16", shard="80KB", spec=None
    )


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama", "mistral"])
def test_open_reads_every_tensor_as_transformers_has_it(family, tmp_path):
    biases = {"attention_bias": True, "mlp_bias": True} if family == "llama" else {}
    folder = make_checkpoint(tmp_path / family, family, tie_word_embeddings=family == "qwen2", spec=None, **biases)
    checkpoint = Checkpoint.open(folder)
    state = build_model(family, tie_word_embeddings=family == "qwen2", **biases).state_dict()
    state = {name: value.numpy() for name, value in state.items() if name != HEAD or family != "qwen2"}
    assert set(checkpoint.names()) == set(state)
    assert all(np.array_equal(checkpoint.tensor(name), state[name]) for name in state)
    assert checkpoint.head_name == (EMBEDDING if family == "qwen2" else HEAD)
    assert checkpoint.arch.qk_norm is (family == "qwen3")
    assert checkpoint.arch.qkv_bias is (family in ("qwen2", "llama"))


def test_tensor_reads_rows_and_bfloat16_across_shards(sharded):
    import torch

    checkpoint = Checkpoint.open(sharded)
    assert len(checkpoint.files()) > 2
    expected = build_model("qwen3").bfloat16().model.embed_tokens.weight.detach().to(torch.float32).numpy()
    assert checkpoint.dtype(EMBEDDING) == "BF16"
    assert np.array_equal(checkpoint.tensor(EMBEDDING), expected)
    assert np.array_equal(checkpoint.tensor(EMBEDDING, slice(430, 999)), expected[430:])


def test_row_slices_cover_without_overlap():
    slices = list(row_slices((1000, 7), chunk_bytes=4 * 7 * 64))
    assert [s.start for s in slices[1:]] == [s.stop for s in slices[:-1]]
    assert slices[-1].stop == 1000
    assert max(s.stop - s.start for s in slices) == 64


@pytest.mark.parametrize("rope", [{"rope_type": "default", "rope_theta": 777_000.0}, LLAMA3])
def test_transformers_4_and_5_configs_give_one_architecture(rope, tmp_path):
    folder = make_checkpoint(tmp_path / "ckpt", "llama", rope_parameters=rope, spec=None)
    five = Checkpoint.open(folder).arch
    write_transformers4_config(folder)
    config = json.loads((folder / "config.json").read_text())
    assert "rope_parameters" not in config
    assert Checkpoint.open(folder).arch == five
    assert five.rope_theta == rope["rope_theta"]


@pytest.mark.parametrize("rope", [{"rope_type": "default", "rope_theta": 777_000.0}, LLAMA3])
def test_rope_frequencies_are_those_of_transformers(rope):
    model = build_model("llama", rope_parameters=rope)
    arch = Architecture.from_config(json.loads(model.config.to_json_string(use_diff=False)))
    expected = model.model.rotary_emb.inv_freq.numpy()
    np.testing.assert_allclose(arch.rope_frequencies(), expected, rtol=1e-6)


def test_head_dim_defaults_as_transformers_has_them():
    assert Architecture.from_config(PLAIN).head_dim == 16
    assert Architecture.from_config({**PLAIN, "model_type": "qwen3", "architectures": None}).head_dim == 128
    assert Architecture.from_config({**PLAIN, "head_dim": 10}).head_dim == 10


def test_sliding_window_counts_only_where_it_is_used():
    mistral = {**PLAIN, "model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 32}
    qwen = {**PLAIN, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "sliding_window": 32}
    assert Architecture.from_config(mistral).sliding_window == 32
    assert Architecture.from_config({**mistral, "sliding_window": None}).sliding_window is None
    del mistral["sliding_window"]
    assert Architecture.from_config(mistral).sliding_window == 4096  # what transformers takes
    assert Architecture.from_config(qwen).sliding_window is None
    assert Architecture.from_config({**qwen, "use_sliding_window": True}).sliding_window == 32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma3"}, "model_type 'gemma3' is not supported"),
        ({"model_type": "qwen3_moe"}, "mixture of experts"),
        ({"num_local_experts": 8}, "mixture of experts"),
        (
            {"architectures": ["LlamaForTokenClassification"]},
            "LlamaForTokenClassification, a process reward model, .* expected LlamaForCausalLM or LlamaForSeq",
        ),
        ({"architectures": ["LlamaForQuestionAnswering"]}, "LlamaForQuestionAnswering, expected LlamaForCausalLM or"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "has 2 outputs .id2label in config.json., expected 1"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope scaling 'yarn' is not supported"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "rope scaling 'linear' is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantized already"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"model_type": "mistral", "architectures": None, "attention_bias": True}, "attention_bias"),
    ],
)
def test_unsupported_configs_are_refused_by_name(changes, message):
    with pytest.raises(UnsupportedCheckpointError, match=message):
        Architecture.from_config({**PLAIN, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_theta": None}, "gives no rope_theta"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}, "two values of rope_theta"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            "lacks low_freq_factor, high_freq_factor, original_max",
        ),
        ({"num_key_value_heads": 3}, "4 heads over 3 KV heads"),
        ({"hidden_size": 0}, "hidden_size is 0, expected a positive whole number"),
        ({"rms_norm_eps": None}, "rms_norm_eps is None"),
    ],
)
def test_impossible_configs_are_refused(changes, message):
    with pytest.raises(ExportError, match=message):
        Architecture.from_config({**PLAIN, **changes})


def test_open_names_what_is_missing(tmp_path, llama):
    with pytest.raises(ExportError, match="is not a folder"):
        Checkpoint.open(tmp_path / "nowhere")
    with pytest.raises(ExportError, match=r"has no config\.json"):
        Checkpoint.open(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UnsupportedCheckpointError, match="LoRA adapter"):
        Checkpoint.open(tmp_path)
    (llama / "model.safetensors").rename(llama / "pytorch_model.bin")
    with pytest.raises(UnsupportedCheckpointError, match=r"\.bin weights only"):
        Checkpoint.open(llama)
    (llama / "pytorch_model.bin").rename(llama / "pytorch_model.bin.index.json")
    with pytest.raises(UnsupportedCheckpointError, match=r"\.bin weights only; save it again with save_pretrained"):
        Checkpoint.open(llama)
    (llama / "pytorch_model.bin.index.json").unlink()
    with pytest.raises(ExportError, match=r"holds neither model\.safetensors nor .* saved anew with save_pretrained"):
        Checkpoint.open(llama)
    (llama / "adapter_config.json").write_text("{}")  # transformers would apply it to the weights beside it
    with pytest.raises(UnsupportedCheckpointError, match="LoRA adapter"):
        Checkpoint.open(llama)
    (tmp_path / "adapter_config.json").write_text('{"task_type": "SEQ_CLS"}')
    with pytest.raises(UnsupportedCheckpointError, match="AutoPeftModelForSequenceClassification"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", ""])
def test_open_reads_no_shard_outside_the_folder(shard, llama):
    (llama / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": shard}}))
    with pytest.raises(ExportError, match=r"index\.json names the shard .*, expected a file beside it"):
        Checkpoint.open(llama)


def test_open_names_a_missing_and_a_truncated_shard(tmp_path):
    folder = make_checkpoint(tmp_path / "ckpt", "qwen2", shard="80KB", spec=None)
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-10])
    with pytest.raises(
        ExportError, match=rf"{shard.name} has {len(whole) - 10} bytes, its header promises {len(whole)}"
    ):
        Checkpoint.open(folder)
    shard.unlink()
    with pytest.raises(ExportError, match=f"{shard.name} is missing"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    "content", [b"", b"abc", b"\xff" * 8, (5).to_bytes(8, "little") + b"{oops", (2).to_bytes(8, "little") + b"[]"]
)
def test_open_names_a_corrupt_header(content, llama):
    (llama / "model.safetensors").write_bytes(content)
    with pytest.raises(ExportError, match=r"model\.safetensors.*is corrupt"):
        Checkpoint.open(llama)


def test_open_compares_shapes_and_names_with_the_config(llama):
    edit_config(llama, num_hidden_layers=3)
    with pytest.raises(ExportError, match=r"no tensor model\.layers\.2\.input_layernorm\.weight"):
        Checkpoint.open(llama)
    edit_config(llama, num_hidden_layers=1)
    with pytest.raises(
        UnsupportedCheckpointError, match=r"tensors that llama does not use, such as model\.layers\.1\."
    ):
        Checkpoint.open(llama)
    edit_config(llama, num_hidden_layers=2, vocab_size=500)
    with pytest.raises(
        ExportError, match=r"embed_tokens\.weight has shape \[433, 96\], config.json implies \[500, 96\]"
    ):
        Checkpoint.open(llama)


def test_open_refuses_a_tied_head_that_differs(llama):
    edit_config(llama, tie_word_embeddings=True)
    with pytest.raises(ExportError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        Checkpoint.open(llama)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_tensor_refuses_broken_weights_by_name(value, llama):
    from safetensors.numpy import load_file, save_file

    weights = load_file(llama / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(weights, llama / "model.safetensors")
    checkpoint = Checkpoint.open(llama)
    assert np.isfinite(checkpoint.tensor("model.layers.0.mlp.up_proj.weight")).all()
    with pytest.raises(ExportError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN or infinite"):
        checkpoint.tensor("model.layers.1.mlp.up_proj.weight")


def test_architecture_is_json_ready(sharded):
    assert json.loads(json.dumps(asdict(Checkpoint.open(sharded).arch)))["head_dim"] == 24
