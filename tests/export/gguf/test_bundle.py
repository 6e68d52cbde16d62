"""A GGUF file becomes a bundle as it is: it scores, compares and thinks through llama.cpp."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from helpers.export import SPEC, make_checkpoint
from helpers.judge import write_tiny_gguf

from fsrm_lite import FastSlowRM
from fsrm_lite.bundle.files import Bundle
from fsrm_lite.cli import main
from fsrm_lite.errors import BundleError, ExportError, JudgeUnavailableError, ToleranceError, UnsupportedCheckpointError
from fsrm_lite.export import export_checkpoint
from fsrm_lite.export.checkpoints.checkpoint import Checkpoint
from fsrm_lite.export.checkpoints.vocabulary import read_vocabulary
from fsrm_lite.export.gguf.tokenizer import read_entries
from fsrm_lite.export.gguf.writer import write_gguf

for module in ("torch", "transformers", "gguf", "llama_cpp"):
    pytest.importorskip(module)

ANY_MASS = {"label_mass": 0}
CHAT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" + (
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ITEMS = [("How much is 3 and 14?", text) for text in ("17", "It is 17.", "I do not know.")] + [("Say yes.", "Yes")]


def as_gguf(folder):
    checkpoint = Checkpoint.open(folder)
    write_gguf(checkpoint, read_vocabulary(folder, checkpoint.arch.vocab_size), folder / "model.gguf", dtype="f32")
    return folder / "model.gguf"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A checkpoint with a chat template, and the same model as a GGUF file."""
    folder = make_checkpoint(tmp_path_factory.mktemp("source") / "ckpt", "llama", scale=0.05)
    (folder / "chat_template.jinja").write_text(CHAT)
    as_gguf(folder)
    return folder


@pytest.fixture(scope="module")
def folder(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundles") / "gguf"
    export_checkpoint(source / "model.gguf", out, spec=SPEC, tolerance=ANY_MASS)
    return out


@pytest.fixture
def rm(folder):
    with FastSlowRM.from_pretrained(folder, threads=1) as rm:
        yield rm


def test_the_bundle_holds_the_file_once_and_as_it_is(folder, source):
    manifest = Bundle.open(folder).manifest
    assert manifest.files["fast"] == manifest.files["slow"]
    assert (folder / "fast" / "model.gguf").read_bytes() == (source / "model.gguf").read_bytes()
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "fast", "fsrm.json", "tokenizer.json"]
    assert manifest.card["gguf"]["tokenizer"] == "built"
    assert manifest.card["architecture"]["model_type"] == "llama"
    assert "The scores are those of model.gguf itself" in (folder / "README.md").read_text()


def test_its_scores_are_those_of_the_checkpoint_in_onnx(rm, source, tmp_path):
    onnx = tmp_path / "onnx"
    export_checkpoint(source, onnx, fast="fp32", slow="none", tolerance={"label_mass": 0, "verdicts": 0})
    with FastSlowRM.from_pretrained(onnx, judge="never") as other:
        for a, b in zip(rm.score_many(ITEMS, judge="never"), other.score_many(ITEMS), strict=True):
            assert a.score == pytest.approx(b.score, abs=1e-4)
            assert a.label_mass == pytest.approx(b.label_mass, abs=1e-4)
            assert a.distribution_confidence == pytest.approx(b.distribution_confidence, abs=1e-4)
        assert [rm.encoder.pointwise_fast(*item) for item in ITEMS] == [
            other.encoder.pointwise_fast(*item) for item in ITEMS
        ]


def test_the_judge_thinks_with_the_weights_that_score(rm):
    compared = rm.compare("How much is 3 and 14?", "17", "18", judge="always", thinking_tokens=8, seed=3)
    assert compared.votes
    assert rm.judge._runner.engine.model is rm.fast.opened
    assert rm.judge_engine.engine == "llama.cpp"
    scored = rm.score(*ITEMS[0], judge="always", thinking_tokens=8)
    assert scored.route == "slow"
    with FastSlowRM.from_pretrained(rm.bundle.root, threads=1, judge_process="subprocess") as apart:
        again = apart.compare("How much is 3 and 14?", "17", "18", judge="always", thinking_tokens=8, seed=3)
    assert [v.rationale for v in again.votes] == [v.rationale for v in compared.votes]


def test_each_alone_or_together(folder, rm):
    together = rm.score_many(ITEMS, judge="never")
    assert together == rm.score_many(ITEMS, judge="never")
    with FastSlowRM.from_pretrained(folder, threads=1, judge="never", deterministic=True) as alone:
        scores = alone.score_many(ITEMS)
        assert scores == [alone.score(*item) for item in ITEMS]
    np.testing.assert_allclose([s.score for s in together], [s.score for s in scores], atol=1e-4)
    assert sum(s.tokens_read for s in together) < sum(s.tokens_read for s in scores)


def test_commands_take_it(folder, tmp_path):
    run = CliRunner().invoke
    checked = run(main, ["verify", str(folder)], catch_exceptions=False)
    assert checked.exit_code == 0
    assert "4 of 4 examples give the noted ids" in checked.output
    shown = run(main, ["inspect", str(folder), "--check"], catch_exceptions=False).output
    assert "runtime     llama.cpp, which is the judge, too" in shown
    assert "label_mass" in shown
    health = json.loads(run(main, ["doctor", str(folder), "--json"], catch_exceptions=False).output)["self_test"]
    assert health["passed"]
    assert health["judge"].startswith("llama.cpp")
    rows = tmp_path / "rows.jsonl"
    texts = [{"prompt": f"How much is {i} and 3?", "chosen": str(i + 3), "rejected": str(i)} for i in range(60)]
    rows.write_text("\n".join(json.dumps(row) for row in texts))
    done = run(
        main, ["calibrate", str(rows), "--model", str(folder), "--risk", "0.6", "-o", str(tmp_path / "gate.json")]
    )
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "gate.json").read_text())


def test_hidden_states_and_onnx_thoughts_are_refused(rm, folder):
    with pytest.raises(BundleError, match="hidden states are read from ONNX fast files only"):
        rm.fast.readings([[1, 2]], hidden=True)
    with (
        FastSlowRM.from_pretrained(folder, judge_engine="onnx") as onnx,
        pytest.raises(BundleError, match="cannot think"),
    ):
        onnx.score(*ITEMS[0], judge="always")


def test_without_llama_cpp_python_it_says_what_to_install(folder, monkeypatch):
    monkeypatch.setattr("fsrm_lite.runtimes.llama.engine.why_not", lambda: "it is missing; run: pip install")
    with pytest.raises(JudgeUnavailableError, match="it is missing; run: pip install"):
        FastSlowRM.from_pretrained(folder)


def test_a_recipe_uses_the_chat_template_of_the_file_or_the_one_beside_it(source, tmp_path):
    assert "tokenizer.chat_template" in read_entries(source / "model.gguf")
    said = []
    spec = {key: value for key, value in SPEC.items() if key != "templates"} | {
        "templates": {
            "pointwise_fast": {"messages": [{"role": "user", "content": "{prompt}\n{response}\nIs that right?"}]}
        }
    }
    manifest = export_checkpoint(
        source / "model.gguf", tmp_path / "own", spec=spec, tolerance=ANY_MASS, notice=said.append
    )
    text = manifest.templates["pointwise_fast"].text
    assert text == "<|im_start|>user\n{prompt}\n{response}\nIs that right?<|im_end|>\n<|im_start|>assistant\n"
    assert "slow" not in manifest.files  # nothing to think about
    assert not said
    beside = tmp_path / "beside"
    beside.mkdir()
    (beside / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    (beside / "chat_template.jinja").write_text(CHAT.replace("assistant", "judge"))
    manifest = export_checkpoint(
        source / "model.gguf", tmp_path / "given", spec=spec, tokenizer=beside, tolerance=ANY_MASS
    )
    assert manifest.templates["pointwise_fast"].text.endswith("<|im_start|>judge\n")
    assert manifest.card["gguf"]["tokenizer"] == "given"
    shown = CliRunner().invoke(main, ["export", str(source / "model.gguf"), "--print-recipe"], catch_exceptions=False)
    assert json.loads(shown.stdout)["labels"][0]["text"] == "Yes"
    assert "by its class LlamaForCausalLM" in shown.stderr


def test_labels_that_the_model_would_not_say_are_refused_or_forced(source, tmp_path):
    with pytest.raises(ToleranceError, match=r"median probability of .* likeliest token is"):
        export_checkpoint(source / "model.gguf", tmp_path / "out", spec=SPEC)
    assert not (tmp_path / "out").exists()
    manifest = export_checkpoint(source / "model.gguf", tmp_path / "out", spec=SPEC, force=True)
    assert "median probability" in manifest.card["gguf"]["violations"][0]


def test_bad_files_are_refused_in_one_line(source, tmp_path):
    def refuse(kind, path, match, **options):
        with pytest.raises(kind, match=match) as found:
            export_checkpoint(path, tmp_path / "out", spec=SPEC, tolerance=ANY_MASS, **options)
        assert "\n" not in str(found.value)
        assert not (tmp_path / "out").exists()

    file = source / "model.gguf"
    encoder = write_tiny_gguf(tmp_path / "encoder.gguf", entries=[("add_causal_attention", False)])
    refuse(ExportError, encoder, "holds a qwen3 model, an encoder, which predicts no next token")
    (tmp_path / "broken.gguf").write_bytes(file.read_bytes()[:3000])
    refuse(ExportError, tmp_path / "broken.gguf", "header is damaged or cut off")
    refuse(ExportError, file, "a GGUF file is taken as it is", slow="q8_0")
    refuse(ExportError, file, "a GGUF file is taken as it is", fast="fp32")
    refuse(ExportError, source, "--tokenizer is for a GGUF file", tokenizer=source)
    unknown = write_tiny_gguf(tmp_path / "unknown.gguf", pre="default")
    refuse(UnsupportedCheckpointError, unknown, "the split 'default' is not known")
    with pytest.raises(ExportError, match="nothing is known about tiny"):
        export_checkpoint(write_tiny_gguf(tmp_path / "tiny.gguf", pre="gpt-2"), tmp_path / "out")


def test_a_tokenizer_that_reads_otherwise_is_refused_if_built_and_warned_of_if_given(source, tmp_path, monkeypatch):
    monkeypatch.setattr("fsrm_lite.export.gguf.bundle.first_text_read_otherwise", lambda *_: "a text")
    file = source / "model.gguf"
    with pytest.raises(ExportError, match="cannot be built from its tokens: of the text 'a text'"):
        export_checkpoint(file, tmp_path / "out", spec=SPEC, tolerance=ANY_MASS)
    said = []
    export_checkpoint(file, tmp_path / "out", spec=SPEC, tolerance=ANY_MASS, tokenizer=source, notice=said.append)
    assert any("is used, although of the text 'a text'" in line for line in said)
