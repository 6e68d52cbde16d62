"""The checkpoint and a GGUF file give the readings and chains that the simplest possible loop gives."""

import importlib
import json

import numpy as np
import pytest
from helpers.export import make_checkpoint

from fsrm_lite.export.checkpoints.checkpoint import Checkpoint
from fsrm_lite.export.checkpoints.vocabulary import read_vocabulary
from fsrm_lite.export.gguf.writer import write_gguf
from fsrm_lite.export.parity.readings import ChainTask, Ending, Thought, read_logits

for module in ("torch", "transformers", "gguf", "llama_cpp"):
    pytest.importorskip(module)

LABELS = [11, 7]


def random_sequences():
    """Sequences of two families (which begin alike), one of them twice, one alone, and one as short as can be."""
    rng = np.random.default_rng(5)
    long, short = rng.integers(0, 400, 40).tolist(), rng.integers(0, 400, 9).tolist()
    ends = [rng.integers(0, 400, n).tolist() for n in (3, 1, 7, 2)]
    return [
        long + ends[0],
        short + ends[1],
        long + ends[2],
        [5],
        long + ends[0],
        short + ends[3],
        rng.integers(0, 400, 30).tolist(),
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = make_checkpoint(tmp_path_factory.mktemp("readers") / "ckpt", "qwen3")
    # Settings that would change every greedy choice if they were obeyed.
    (folder / "generation_config.json").write_text(
        json.dumps({"repetition_penalty": 5.0, "do_sample": True, "min_new_tokens": 9})
    )
    return folder


@pytest.fixture(scope="module")
def logits(folder):
    """A function that returns the logits behind a sequence, from a forward pass of the whole sequence."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def ask(ids):
        with torch.no_grad():
            return model(torch.tensor([list(ids)])).logits[0, -1].numpy()

    return ask


@pytest.fixture(scope="module")
def reference(folder):
    return importlib.import_module("fsrm_lite.export.parity.reference").Reference(folder)


@pytest.fixture(scope="module")
def gguf(folder, tmp_path_factory):
    checkpoint = Checkpoint.open(folder)
    path = tmp_path_factory.mktemp("readers") / "m.gguf"
    write_gguf(checkpoint, read_vocabulary(folder, checkpoint.arch.vocab_size), path, dtype="f32")
    with importlib.import_module("fsrm_lite.export.parity.engine_reader").EngineReader(path) as reader:
        yield reader


def test_a_fast_graph_is_as_large_as_the_weights_beside_it(tmp_path, monkeypatch):
    reader = importlib.import_module("fsrm_lite.export.parity.engine_reader")
    opened = []
    monkeypatch.setattr(reader, "open_engine", lambda path, threads: opened.append((path.name, threads)))
    monkeypatch.setattr(reader, "SMALL_MODEL_BYTES", 1000)
    for name, sizes in (("small", (100, 800)), ("large", (100, 1000)), ("whole", (1000,))):
        (tmp_path / name).mkdir()
        for file, size in zip(("model.onnx", "model.onnx.data"), sizes, strict=False):
            (tmp_path / name / file).write_bytes(b"x" * size)
        reader.EngineReader(tmp_path / name / "model.onnx")
    assert opened == [("model.onnx", 1), ("model.onnx", None), ("model.onnx", None)]


def tasks_of(logits, prompts):
    """Every prompt with two endings: one without stop ids, and one that stops some thoughts early.

    Its stop id is the third token that is written behind the first prompt.
    """
    plain = Ending(frozenset(), (3, 9, 4), (20, 21, 22), 6)
    third = greedy(logits, ChainTask(prompts[0], plain))[0][2]
    stopped = Ending(frozenset({third}), (8,), (30, 31), 4)
    return [ChainTask(tuple(prompt), ending) for ending in (plain, stopped) for prompt in prompts]


def greedy(logits, task):
    """The thought and the logits of the choices, from one whole forward pass per token."""
    ids: list[int] = []
    while len(ids) < task.ending.budget:
        best = int(logits([*task.prompt, *ids]).argmax())
        if best in task.ending.stop_ids:
            break
        ids.append(best)
    return tuple(ids), verdict(logits, task, ids)


def verdict(logits, task, ids):
    return logits([*task.prompt, *ids, *task.ending.tail])[list(task.ending.choice_ids)]


def test_first_tokens_are_those_of_whole_passes_in_input_order(reference, gguf, logits):
    sequences = random_sequences()
    for reader, close in ((reference, 1e-4), (gguf, 2e-2)):
        seen = []
        readings = reader.first_token(sequences, LABELS, lambda done, total, seen=seen: seen.append((done, total)))
        for ids, reading in zip(sequences, readings, strict=True):
            expected = read_logits(logits(ids), LABELS)
            assert reading.label_logits == pytest.approx(expected.label_logits, abs=close)
            assert reading.log_mass == pytest.approx(expected.log_mass, abs=close)
            assert reading.entropy == pytest.approx(expected.entropy, abs=close)
        assert seen[-1] == (7, 7)


def test_the_checkpoints_chains_are_greedy_whatever_its_generation_config_says(reference, logits):
    tasks = tasks_of(logits, random_sequences())
    for task, chain in zip(tasks, reference.think(tasks), strict=True):
        thought, choices = greedy(logits, task)
        assert chain.thought.ids == thought
        assert chain.choice_logits == pytest.approx(choices, abs=1e-4)
        assert all(token in ties for token, ties in zip(thought, chain.thought.ties, strict=False))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["qwen3", "llama"])  # with a head that is tied to the embedding, and one that is not
def test_weights_that_are_widened_by_layer_give_the_same_bits(kind, dtype, logits, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    reference = importlib.import_module("fsrm_lite.export.parity.reference")
    plain = AutoModelForCausalLM.from_pretrained(make_checkpoint(tmp_path / "f32", kind), dtype=getattr(torch, dtype))
    plain.save_pretrained(tmp_path / "narrow")
    whole, by_layer = (reference.Reference(tmp_path / "narrow", by_layer=narrow) for narrow in (False, True))
    sequences, tasks = random_sequences(), tasks_of(logits, random_sequences())
    for _ in range(2):  # nothing is left behind
        assert by_layer.first_token(sequences, LABELS) == whole.first_token(sequences, LABELS)
        assert by_layer.think(tasks) == whole.think(tasks)
    assert {parameter.dtype for parameter in by_layer._model.parameters()} == {getattr(torch, dtype)}


def test_large_weights_are_widened_by_layer_by_themselves(folder, monkeypatch):
    reference = importlib.import_module("fsrm_lite.export.parity.reference")
    stored = (folder / "model.safetensors").stat().st_size
    for memory, widened in ((5 * stored, 0), (3 * stored, 1)):
        monkeypatch.setattr(reference, "memory_bytes", lambda memory=memory: memory)
        model = reference.Reference(folder)._model
        assert len(model.model.layers[0]._forward_pre_hooks) == widened


def test_a_ggufs_own_and_given_chains_are_those_of_whole_passes(gguf, logits, monkeypatch):
    monkeypatch.setattr("fsrm_lite.runtimes.prefill.STREAMS", 3)
    tasks = tasks_of(logits, random_sequences())
    given = [Thought(tuple(range(n, n + n % 4))) for n in range(len(tasks))]
    given[0] = Thought(greedy(logits, tasks[0])[0])
    for task, thought, (own, told) in zip(tasks, given, gguf.think(tasks, given), strict=True):
        ids, choices = greedy(logits, task)
        assert own.thought.ids == ids
        assert own.choice_logits == pytest.approx(choices, abs=2e-2)
        assert told.thought == thought
        assert told.choice_logits == pytest.approx(verdict(logits, task, thought.ids), abs=2e-2)


def test_long_prompts_are_read_fewer_at_a_time(gguf, monkeypatch):
    sequences = random_sequences()
    expected = gguf.first_token(sequences, LABELS)
    monkeypatch.setattr("fsrm_lite.runtimes.prefill.CACHE_BYTES", 1)
    alone = gguf.first_token(sequences, LABELS)
    np.testing.assert_allclose([r.label_logits for r in alone], [r.label_logits for r in expected], atol=1e-3)
