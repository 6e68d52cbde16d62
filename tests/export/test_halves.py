"""Two models become one bundle: one scores, and the other one thinks, with a tokenizer of its own."""

import json

import pytest
from click.testing import CliRunner
from helpers.export import SPEC, build_tokenizer, make_checkpoint, write_tokenizer

from fsrm_lite import FastSlowRM
from fsrm_lite.bundle.files import Bundle, write_manifest
from fsrm_lite.cli import main
from fsrm_lite.errors import BundleError, ExportError
from fsrm_lite.export.checkpoints.checkpoint import Checkpoint
from fsrm_lite.export.checkpoints.vocabulary import read_vocabulary
from fsrm_lite.export.gguf.writer import write_gguf
from fsrm_lite.export.halves import export_with_judge
from fsrm_lite.loops.reasoners import SolveReasoner, Task

for module in ("torch", "transformers", "onnx", "gguf", "llama_cpp"):
    pytest.importorskip(module)

LOOSE = {"delta_score": 1, "label_mass": 0, "decisions": 0, "routes": 0, "verdicts": 0, "delta_logit": 9}
FAST_ONLY = {**SPEC, "name": "scorer", "templates": {"pointwise_fast": SPEC["templates"]["pointwise_fast"]}}
SOLVE = {"text": "<|im_start|>user\nQuestion: {prompt}<|im_end|>\n<|im_start|>assistant\n"}
THINKS = {**SPEC, "name": "thinker", "templates": {**SPEC["templates"], "solve": SOLVE}}
PAIR = ("How much is 3 and 14?", "17", "18")
QUICK = {"judge": "always", "thinking_tokens": 6, "seed": 1}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A scorer; and a thinker with another vocabulary, also as a GGUF file."""
    root = tmp_path_factory.mktemp("halves")
    make_checkpoint(root / "scorer", "qwen3", scale=0.02, spec=FAST_ONLY)
    slow = make_checkpoint(root / "thinker", "llama", scale=0.02, seed=5, spec=THINKS, vocab_size=340)
    write_tokenizer(slow, build_tokenizer(vocab_size=330))
    write_gguf(Checkpoint.open(slow), read_vocabulary(slow, 340), slow / "thinker.gguf", dtype="f32")
    (root / "rows.jsonl").write_text(
        "\n".join(json.dumps({"prompt": f"How much is {i}?", "responses": [str(i), "no"]}) for i in range(4))
    )
    return root


def export(checkpoints, out, judge="thinker", **options):
    return export_with_judge(
        checkpoints / "scorer",
        checkpoints / judge,
        out,
        fast="fp32",
        tolerance=LOOSE,
        calibration=checkpoints / "rows.jsonl",
        **options,
    )


@pytest.fixture(scope="module")
def folder(checkpoints, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundles") / "two"
    export(checkpoints, out, slow="f16")
    return out


def test_each_half_has_its_own_tokenizer_templates_and_runtime(folder):
    bundle = Bundle.open(folder)
    slow = bundle.judge()
    assert list(bundle.manifest.templates) == ["pointwise_fast"]
    assert set(bundle.manifest.files) == {"tokenizer", "fast", "judge"}
    assert (slow.manifest.name, slow.manifest.vocab_size) == ("thinker", 340)
    assert slow.path("tokenizer").read_bytes() != bundle.path("tokenizer").read_bytes()
    bundle.check()
    assert "Judge: thinker" in (folder / "README.md").read_text()
    assert not list(folder.glob(".*"))
    with FastSlowRM.from_pretrained(folder, threads=1) as rm:
        compared = rm.compare(*PAIR, **QUICK)
        assert rm.judge.encoder.manifest.name == "thinker"
        assert rm.judge_engine.engine == "llama.cpp"
        with FastSlowRM.from_pretrained(folder / "judge", threads=1) as alone:
            assert [v.rationale for v in alone.compare(*PAIR, **QUICK).votes] == [v.rationale for v in compared.votes]
        assert rm.score(*PAIR[:2], **QUICK).route == "slow"
        ids = SolveReasoner(rm).prompt_ids(Task("How much is 3?"))
        assert ids == rm.judge.encoder.solve("How much is 3?")
        assert "solve" not in rm.bundle.manifest.templates


def test_the_judge_thinks_on_onnx_runtime_as_well(folder, monkeypatch):
    with FastSlowRM.from_pretrained(folder, threads=1, judge_engine="onnx") as rm:
        assert rm.compare(*PAIR, **QUICK).votes
    monkeypatch.setattr("fsrm_lite.runtimes.llama.engine.why_not", lambda: "missing")
    with FastSlowRM.from_pretrained(folder, threads=1) as rm:
        assert rm.judge_engine.engine == "onnx"
        assert rm.compare(*PAIR, **QUICK).votes


def test_scores_are_those_of_the_fast_half_alone(folder, checkpoints):
    with FastSlowRM.from_pretrained(folder, threads=1, judge="never") as rm:
        golden = rm.bundle.manifest.card["golden"]
        for example in golden:
            assert rm.score(example["prompt"], example["response"]).score == pytest.approx(example["score"])


def test_the_shell_shows_checks_and_exports_it(folder, checkpoints, tmp_path):
    run = CliRunner().invoke
    assert "thinker, in " in run(main, ["inspect", str(folder), "--check"], catch_exceptions=False).output
    assert run(main, ["verify", str(folder)], catch_exceptions=False).exit_code == 0
    health = json.loads(run(main, ["doctor", str(folder), "--json"], catch_exceptions=False).output)["self_test"]
    assert health["judge"] == "llama.cpp: the judge has a GGUF file of its own"
    assert "judge_wrote" in health
    wrong = run(main, ["export", str(checkpoints / "scorer"), "-o", str(tmp_path / "x"), "--judge-recipe", "rrm"])
    assert wrong.exit_code == 2
    assert "--judge-recipe is for a judge" in wrong.output
    arguments = ["export", str(checkpoints / "scorer"), "--judge", str(checkpoints / "thinker" / "thinker.gguf")]
    arguments += ["--judge-spec", str(checkpoints / "thinker" / "fsrm.json"), "-o", str(tmp_path / "gguf")]
    arguments += ["--calibration", str(checkpoints / "rows.jsonl"), "--fast", "fp32"]
    for name, value in LOOSE.items():
        arguments += ["--tolerance", f"{name}={value}"]
    done = run(main, arguments)
    assert done.exit_code == 0, done.output
    with FastSlowRM.from_pretrained(tmp_path / "gguf", threads=1) as rm:
        assert rm.compare(*PAIR, **QUICK).votes
        assert rm.bundle.judge().manifest.files["slow"].path == "fast/model.gguf"


def test_halves_that_do_not_fit_are_named_before_the_work(checkpoints, tmp_path):
    def nothing_computed(stage, done, total):
        raise AssertionError(stage)

    def refuse(match, judge="thinker", **options):
        with pytest.raises(ExportError, match=match):
            export(checkpoints, tmp_path / "out", judge, progress=nothing_computed, **options)
        assert not (tmp_path / "out").exists()

    refuse(r"the judge .*scorer has no slow template \(.*fsrm.json has pointwise_fast\)", "scorer")
    slow_only = {**THINKS, "templates": {"pairwise_slow": SPEC["templates"]["pairwise_slow"]}}
    refuse(r"the fast half .*scorer has no fast template \(the spec has pairwise_slow\)", spec=slow_only)
    refuse("is a file; expected the folder", "rows.jsonl")
    broken = {**THINKS, "stop": ["<|nowhere|>"]}
    refuse(r"\"stop\" names '<\|nowhere\|>'", judge_spec=broken)


def test_a_judge_within_a_judge_and_an_altered_one_are_refused(folder, tmp_path):
    import shutil

    copy = shutil.copytree(folder, tmp_path / "copy")
    inner = Bundle.open(copy / "judge")
    files = {role: entry.path for role, entry in inner.manifest.files.items()}
    write_manifest(copy / "judge", inner.manifest, {**files, "judge": "tokenizer.json"})
    with pytest.raises(BundleError, match=r"judge/fsrm.json (was altered|has \d+ bytes)"):
        Bundle.open(copy).judge()
    outer = Bundle.open(copy).manifest
    write_manifest(copy, outer, {role: entry.path for role, entry in outer.files.items()})
    with pytest.raises(BundleError, match="names a judge again"):
        Bundle.open(copy).judge()
    with FastSlowRM.from_pretrained(copy) as rm, pytest.raises(BundleError, match="names a judge again"):
        rm.compare(*PAIR, **QUICK)
