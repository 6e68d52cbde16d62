"""An ONNX folder that optimum wrote becomes a bundle as it is."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import ROOT
from helpers.encoders import make_onnx_folder, unigrams, word_pieces

from fsrm_lite import FastSlowRM
from fsrm_lite.bundle.files import Bundle
from fsrm_lite.cli import main
from fsrm_lite.errors import ExportError, InputError, UnsupportedCheckpointError
from fsrm_lite.export import export_checkpoint
from fsrm_lite.export.halves import export_with_judge

for module in ("onnx", "gguf"):
    pytest.importorskip(module)

PROMPT = "How much is 3 and 14?"
RESPONSES = ["17", "it is 17.", "I do not know", "[SEP] yes [CLS]"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoders")
    expected = make_onnx_folder(root / "cross-encoder")
    export_checkpoint(root / "cross-encoder", root / "bundle")
    return root, expected


def test_rewards_are_those_of_the_graph_on_the_tokenizers_own_pairs(made):
    root, expected = made
    tokenizer = word_pieces()
    tokenizer.encode_special_tokens = True  # what a text spells is text
    with FastSlowRM.from_pretrained(root / "bundle", threads=1, judge="never") as rm:
        assert rm.bundle.manifest.templates["pointwise_fast"].text == "[CLS]{prompt}[SEP]{response}[SEP]"
        assert (rm.bundle.manifest.limits.context, rm.bundle.manifest.head) == (128, "scalar")
        scores = rm.score_many([(PROMPT, response) for response in RESPONSES])
        for response, score in zip(RESPONSES, scores, strict=True):
            pair = tokenizer.encode(PROMPT, response)
            assert score.logit == pytest.approx(float(expected(pair.ids, pair.type_ids)[0]), abs=1e-5)
            assert (score.label_mass, score.distribution_confidence) == (None, None)
        best = rm.best_of_n(PROMPT, RESPONSES)
        assert best.index == int(np.argmax([s.logit for s in scores]))
        assert rm.rank(PROMPT, RESPONSES)[0]["corpus_id"] == best.index
        with pytest.raises(InputError, match="the context holds 128"):
            rm.score(PROMPT, "yes " * 200)
    with FastSlowRM.from_pretrained(root / "bundle", truncate=True) as rm:
        assert rm.score(PROMPT, "yes " * 200).tokens_read == 128


def test_the_bundle_says_what_it_is_and_commands_take_it(made):
    root, _ = made
    manifest = Bundle.open(root / "bundle").manifest
    assert manifest.encoder.pad_id == 0
    assert manifest.encoder.separator_id == 3
    assert json.loads((root / "bundle" / "fsrm.json").read_text())["encoder"] == {"pad_id": 0, "separator_id": 3}
    assert "an encoder with one output" in (root / "bundle" / "README.md").read_text()
    run = CliRunner().invoke
    assert run(main, ["verify", str(root / "bundle")], catch_exceptions=False).exit_code == 0
    assert "on an encoder" in run(main, ["inspect", str(root / "bundle")], catch_exceptions=False).output
    health = json.loads(run(main, ["doctor", str(root / "bundle"), "--json"], catch_exceptions=False).output)
    assert health["self_test"]["passed"]
    shown = run(main, ["export", str(root / "cross-encoder"), "--print-recipe"], catch_exceptions=False)
    assert json.loads(shown.stdout)["templates"]["pointwise_fast"]["text"] == "[CLS]{prompt}[SEP]{response}[SEP]"


def test_a_unigram_tokenizer_reads_as_before_but_spells_no_control_token(tmp_path):
    expected = make_onnx_folder(tmp_path / "folder", unigrams(), types=False, external=True)
    own = tmp_path / "rows.jsonl"
    own.write_text(json.dumps({"prompt": "what is it?", "responses": ["it is it.", "is it Caf\u00e9 [is]?"]}))
    export_checkpoint(tmp_path / "folder", tmp_path / "bundle", calibration=own)
    with FastSlowRM.from_pretrained(tmp_path / "bundle", threads=1) as rm:
        assert set(rm.bundle.manifest.files) == {"tokenizer", "fast", "fast_data"}
        assert rm.bundle.manifest.encoder.separator_id is None
        ids = unigrams().encode("what is it?", "it is it.").ids
        assert rm.encoder.pointwise_fast("what is it?", "it is it.") == ids
        assert rm.score("what is it?", "it is it.").logit == pytest.approx(float(expected(ids, None)[0]), abs=1e-5)
        assert rm.encoder.pointwise_fast("x", "[SEP]").count(3) == 2
        assert 3 in unigrams().encode("a [SEP]", add_special_tokens=False).ids


def test_an_encoder_scores_and_a_language_model_thinks(made, tmp_path):
    pytest.importorskip("torch")
    from helpers.export import SPEC, make_checkpoint

    root, _ = made
    slow = make_checkpoint(tmp_path / "slow", "qwen3", scale=0.02)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "How much is it?", "responses": ["3", "no"]}))
    loose = {"delta_score": 1, "label_mass": 0, "decisions": 0, "routes": 0, "verdicts": 0, "delta_logit": 9}
    export_with_judge(
        root / "cross-encoder", slow, tmp_path / "two", judge_spec=SPEC, slow="none", tolerance=loose, calibration=rows
    )
    with FastSlowRM.from_pretrained(tmp_path / "two", threads=1) as rm:
        compared = rm.compare(PROMPT, "17", "18", judge="always", thinking_tokens=6)
        assert compared.votes
        assert rm.judge_engine.engine == "onnx"
    with pytest.raises(ExportError, match=r"the judge .* has no slow template"):
        export_with_judge(slow, root / "cross-encoder", tmp_path / "wrong")


def test_bad_folders_are_refused_in_one_line(made, tmp_path):
    def refuse(kind, match, change, **options):
        folder = tmp_path / f"folder{len(list(tmp_path.iterdir()))}"
        make_onnx_folder(folder, **options.pop("graph", {}))
        change(folder)
        with pytest.raises(kind, match=match) as found:
            export_checkpoint(folder, tmp_path / "out", **options)
        assert "\n" not in str(found.value)
        assert not (tmp_path / "out").exists()

    def nothing(folder):
        pass

    refuse(ExportError, "has 2 outputs per text, expected 1", nothing, graph={"outputs": 2})
    refuse(ExportError, r"has no tokenizer\.json; save the tokenizer", lambda f: (f / "tokenizer.json").unlink())
    refuse(ExportError, r"has no config\.json", lambda f: (f / "config.json").unlink())
    refuse(ExportError, r"has 2 graphs \(a\.onnx, b\.onnx\)", lambda f: two_graphs(f))
    refuse(ExportError, "does not say how long a text may be", without_limits)
    refuse(ExportError, "an encoder is taken as it is; --recipe", nothing, recipe="yes-no")
    refuse(ExportError, "an encoder is taken as it is; --recipe", nothing, slow="q8_0")
    refuse(ExportError, "cannot be loaded as an ONNX model", lambda f: (f / "model.onnx").write_bytes(b"\x08\x09x"))
    refuse(UnsupportedCheckpointError, "writes a pair of texts as", second_first)


def two_graphs(folder):
    (folder / "model.onnx").rename(folder / "a.onnx")
    (folder / "b.onnx").write_bytes((folder / "a.onnx").read_bytes())


def without_limits(folder):
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 1e30}))
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))


def second_first(folder):
    data = json.loads((folder / "tokenizer.json").read_text())
    pair = data["post_processor"]["pair"]
    pair[1], pair[3] = pair[3], pair[1]
    (folder / "tokenizer.json").write_text(json.dumps(data))


def test_without_optimum_it_says_how_to_get_an_environment(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optimum.exporters.onnx", None)
    done = CliRunner().invoke(main, ["export", "org/rm", "--exporter", "optimum", "-o", str(tmp_path / "x")])
    assert done.exit_code == 2
    assert "optimum/bin/optimum-cli export onnx --model org/rm --task text-classification" in done.output


PYTHON = Path(os.environ.get("FSRM_OPTIMUM", ROOT / ".bench" / "venv-optimum" / "bin" / "python"))
MAKE = """
import sys, torch
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast
from optimum.exporters.onnx import main_export
folder, out = sys.argv[1:]
torch.manual_seed(0)
tokenizer = PreTrainedTokenizerFast(tokenizer_file=folder + "/tokenizer.json", pad_token="[PAD]", model_max_length=128)
config = BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                    intermediate_size=64, max_position_embeddings=128, num_labels=1, initializer_range=0.3)
model = BertForSequenceClassification(config).eval()
model.save_pretrained(out + "/checkpoint"); tokenizer.save_pretrained(out + "/checkpoint")
main_export(out + "/checkpoint", output=out + "/onnx", task="text-classification", do_validation=False)
with torch.no_grad():
    for response in sys.stdin.read().splitlines():
        pair = tokenizer("how much is it?", response, return_tensors="pt", return_token_type_ids=True)
        print(float(model(**pair).logits[0, 0]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON.is_file(), reason="no environment with optimum; see make optimum")
def test_what_optimum_itself_wrote_scores_as_transformers_does(tmp_path):
    word_pieces().save(str(tmp_path / "tokenizer.json"))
    responses = ["3", "it is 3.", "no answer", "yes yes yes the answer is 12"]
    command = [str(PYTHON), "-c", MAKE, str(tmp_path), str(tmp_path)]
    done = subprocess.run(command, input="\n".join(responses), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = [float(line) for line in done.stdout.split()[-len(responses) :]]
    export_checkpoint(tmp_path / "onnx", tmp_path / "bundle")
    with FastSlowRM.from_pretrained(tmp_path / "bundle", threads=1, judge="never") as rm:
        scores = rm.score_many([("how much is it?", response) for response in responses])
    np.testing.assert_allclose([s.logit for s in scores], expected, atol=1e-4)
