import importlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest
from click.testing import CliRunner
from helpers.export import FAMILIES, SPEC, make_checkpoint, make_hostile, reference_logits

from fsrm_lite.bundle.files import Bundle, file_sha256
from fsrm_lite.cli.exporting import export
from fsrm_lite.errors import (
    ContextOverflowError,
    ExportError,
    FsrmError,
    JudgeError,
    ToleranceError,
    UnsupportedCheckpointError,
)
from fsrm_lite.export.card import model_card, parity_summary, parity_table
from fsrm_lite.export.folders import atomic_folder
from fsrm_lite.export.parity.measures import Tolerance, Violations
from fsrm_lite.scorer import FastSlowRM

for module in ("torch", "transformers", "onnx", "gguf", "llama_cpp"):
    pytest.importorskip(module)


def export_checkpoint(*arguments, tolerance=None, **options):
    """Export a checkpoint of random weights, which say a label no more often than any other token."""
    exporter = importlib.import_module("fsrm_lite.export").export_checkpoint
    return exporter(*arguments, tolerance={"label_mass": 0, **(tolerance or {})}, **options)


ROWS = [
    {"prompt": f"How much is {i} and {i + 3}?", "responses": [str(2 * i + 3), f"It is {i}.", "I do not know."]}
    for i in range(4)
]
BUNDLE = json.dumps({"files": {"fast": {}}})
LOOSE = {"delta_score": 1, "label_mass": 0, "decisions": 0, "routes": 0, "verdicts": 0}
ANY_MASS = ["--tolerance", "label_mass=0"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("export") / "ckpt", "qwen3", scale=0.02, tie_word_embeddings=True)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS))
    return path


@pytest.fixture(scope="module")
def exported(checkpoint, rows, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundles") / "tiny"
    stages, hashed = [], []

    def recorded(path):
        hashed.append(path.name)
        return file_sha256(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fsrm_lite.bundle.files.file_sha256", recorded)
        manifest = export_checkpoint(
            checkpoint, out, fast="fp32", slow="f16", calibration=rows, progress=lambda stage, *_: stages.append(stage)
        )
    assert hashed.count("model.gguf") == 1  # it may have gigabytes
    return out, manifest, list(dict.fromkeys(stages))


@pytest.fixture
def copy(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "ckpt")


def listing(folder):
    return sorted(p.name for p in folder.iterdir())


def edit_json(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_export_writes_a_whole_bundle(exported):
    out, manifest, stages = exported
    bundle = Bundle.open(out)
    bundle.check()
    assert bundle.manifest == manifest
    assert listing(out) == ["README.md", "fast", "fsrm.json", "slow", "tokenizer.json"]
    assert listing(out.parent) == ["tiny"]
    assert stages[:3] == ["check weights", "reference scores", "reference thoughts"]
    assert len(stages) >= 8


def test_export_measures_parity_of_both_files(exported):
    _, manifest, _ = exported
    parity = manifest.card["parity"]
    assert parity["passed"]
    assert not parity["forced"]
    assert parity["calibration"] == {"source": "pairs.jsonl", "items": 12, "pairs": 12}
    assert parity["fast"]["max_delta_logit"] <= 1e-3
    assert parity["slow"]["max_delta_logit"] <= 1e-2
    assert parity["fast"]["chains"] == parity["slow"]["chains"] > 10
    assert parity["fast"]["thinks"]
    assert parity["slow"]["matrices"] == {"f16": 15}
    assert manifest.card["provenance"]["checkpoint_sha256"]
    assert manifest.card["architecture"]["head_dim"] == 24


def test_exported_files_score_like_the_checkpoint(exported, checkpoint):
    from fsrm_lite.bundle.encoder import PromptEncoder
    from fsrm_lite.runtimes.onnx.session import FastModel

    out, manifest, _ = exported
    bundle = Bundle.open(out)
    ids = PromptEncoder(bundle.path("tokenizer"), manifest).pointwise_fast("What is 2 + 2?", "It is 4.")
    model = FastModel(bundle.path("fast"))
    reading = model.read([ids])[0]
    model.close()
    expected = reference_logits(checkpoint, ids)
    np.testing.assert_allclose(reading.label_logits, expected[[label.id for label in manifest.labels]], atol=1e-4)
    assert reading.log_mass == pytest.approx(float(np.logaddexp.reduce(expected.astype(np.float64))), abs=1e-4)


def test_export_card_holds_the_table(exported):
    card = (exported[0] / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert "| pairwise decisions alike, near ties aside | 100.00% (at least 99%) | 100.00% |" in card
    assert "| greedy verdicts alike, near ties aside | 100.00% | 100.00% (at least 98%) |" in card
    assert "| the judge may think with it | yes |  |" in card
    assert card.count("A fast/slow reward model") == 1
    assert "12 pairs (pairs.jsonl), fewer than the 500 that the tolerances are meant for, and 24 chains" in card
    assert "within tolerance." in card


def test_card_shows_each_tolerance_beside_what_it_bounds_and_nowhere_else(exported):
    lines = parity_table(exported[1].card["parity"]).splitlines()
    bounded = {
        line.split("|")[1].strip(): [cell.partition("(")[2].strip(" )") for cell in line.split("|")[2:4]]
        for line in lines[2:]
        if "(at" in line
    }
    assert bounded == {
        "label logit, largest difference": ["at most 0.001", ""],
        "label mass of the checkpoint, median": ["at least 0", ""],
        "pairwise decisions alike, near ties aside": ["at least 99%", ""],
        "gate routes alike, near ties aside": ["at least 99%", ""],
        "greedy verdicts alike, near ties aside": ["", "at least 98%"],
        "verdicts alike behind the same thought, near ties aside": ["", "at least 98%"],
    }
    int8 = {
        **exported[1].card["parity"]["fast"],
        "precision": "int8",
        "tolerance": Tolerance().of_fast("int8"),
        "max_delta_score": 0.0125,
    }
    table = parity_table({"fast": int8})
    assert "| score, largest difference | 0.013 (at most 0.02) |" in table
    assert "0.001" not in table


def test_summary_says_on_how_little_it_was_measured():
    fast = {"pairs": 9, "clear_pairs": 9}
    data = {"items": 9, "pairs": 9, "source": "x.jsonl"}
    told = "Measured on 9 responses in 9 pairs (x.jsonl), fewer than the 500 that the tolerances are meant for"
    assert parity_summary({"calibration": data, "fast": fast, "passed": True}) == f"{told}; within tolerance."
    thinking = {**fast, "chains": 4, "thinking_tokens": 16}
    summary = parity_summary({"calibration": data, "fast": thinking, "passed": True})
    assert summary == f"{told}, and 4 chains of thought of at most 16 tokens; within tolerance."


def test_card_tells_how_to_use_the_bundle_in_code_that_runs(exported, capsys):
    out, manifest, _ = exported
    code = (out / "README.md").read_text().split("```python\n")[1].split("```")[0]
    exec(code.replace("path/to/this/folder", str(out)), {})
    assert capsys.readouterr().out.split()[1] in ("fast", "slow")
    own = model_card(manifest, "Says the trainer.")
    assert "# tiny\n\nSays the trainer.\n\n## Use" in own
    assert "A fast/slow reward model" not in own


def test_export_out_of_tolerance_writes_nothing_unless_forced(checkpoint, rows, tmp_path):
    options = {"slow": "none", "calibration": rows, "tolerance": {"delta_score": 0.0}}
    with pytest.raises(ToleranceError, match=r"a score is off by .*, allowed 0; .*the worst MatMul is .* with --force"):
        export_checkpoint(checkpoint, tmp_path / "out", **options)
    assert listing(tmp_path) == []
    manifest = export_checkpoint(checkpoint, tmp_path / "out", force=True, **options)
    assert manifest.card["parity"]["forced"]
    assert "OUT OF TOLERANCE" in (tmp_path / "out" / "README.md").read_text()
    assert not Bundle.open(tmp_path / "out").has("slow")


@pytest.mark.parametrize(
    ("fast", "slow", "named"), [("int8", "none", True), ("fp32", "q8_0", True), ("fp32", "f16", False)]
)
def test_export_names_the_worst_matmul_where_quantization_did_it(
    fast, slow, named, checkpoint, rows, tmp_path, monkeypatch
):
    kind = "slow" if slow != "none" else "fast"
    monkeypatch.setattr(
        "fsrm_lite.export.pipeline.violations",
        lambda *_: Violations(**{kind: (f"something is off; try --{kind} wider",)}),
    )
    with pytest.raises(ToleranceError, match=f"{kind}: something is off; try --{kind} wider; ") as caught:
        export_checkpoint(checkpoint, tmp_path / "out", fast=fast, slow=slow, calibration=rows, tolerance=LOOSE)
    assert ("the worst MatMul is " in str(caught.value)) == named
    # A bad slow file does not throw away a good fast one.
    assert listing(tmp_path) == ([] if kind == "fast" else ["out"])
    if kind == "slow":
        kept = Bundle.open(tmp_path / "out")
        kept.check()
        assert not kept.has("slow")
        assert kept.manifest.card["parity"]["passed"]


def drop_shard(folder):
    (folder / "model.safetensors").unlink()


def small_embedding(folder):
    edit_json(
        folder / "tokenizer.json",
        lambda data: data["added_tokens"].append({**data["added_tokens"][-1], "id": 433, "content": "<far>"}),
    )


def nan_weights(folder):
    from safetensors.numpy import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = np.nan
    save_file(weights, folder / "model.safetensors")


def label_of_two_tokens(folder):
    edit_json(folder / "fsrm.json", lambda data: data["labels"][0].update(text="Absolutely"))


def unknown_slot(folder):
    edit_json(folder / "fsrm.json", lambda data: data["templates"]["pointwise_fast"].update(text="{prompt} {answer}"))


def choice_of_two_tokens(folder):
    edit_json(
        folder / "fsrm.json",
        lambda data: data["templates"]["pairwise_slow"]["verdict"].update(choices=["first", "zweite"]),
    )


def long_context(folder):
    edit_json(folder / "fsrm.json", lambda data: data["limits"].update(context=4096))


def unigram(folder):
    edit_json(folder / "tokenizer.json", lambda data: data["model"].update(type="Unigram"))


def unknown_split(folder):
    edit_json(
        folder / "tokenizer.json",
        lambda data: data["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": r"\w+"}),
    )


def no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def no_spec(folder):
    (folder / "fsrm.json").unlink()


def unknown_key(folder):
    edit_json(folder / "fsrm.json", lambda data: data.update(lables=[]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_shard, r"ckpt holds neither model\.safetensors nor"),
        (small_embedding, "gives '<far>' the id 433, but the embedding has only 433 rows"),
        (nan_weights, r"tensor model\.norm\.weight holds NaN"),
        (label_of_two_tokens, "the label 'Absolutely' is not a single token behind"),
        (choice_of_two_tokens, "the verdict choice of pairwise_slow 'first' is not a single token behind"),
        (unknown_slot, r"fsrm\.json: template 'pointwise_fast' names the unknown slot \{answer\}"),
        (long_context, r"limits\.context is 4096, the model was made for 256"),
        (unigram, "tokenizer is of type 'Unigram'"),
        (unknown_split, "tokenizer's split .* is not known"),
        (no_tokenizer, r"has no tokenizer\.json"),
        (no_spec, r"nothing is known about .*: no recipe has its name"),
        (unknown_key, "unknown keys lables"),
    ],
)
def test_export_refuses_bad_checkpoints_in_one_line_and_writes_nothing(damage, message, copy, tmp_path):
    damage(copy)
    with pytest.raises(ExportError, match=message) as caught:
        export_checkpoint(copy, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert listing(tmp_path) == ["ckpt"]


def test_export_never_replaces_the_checkpoint_itself(copy, rows, tmp_path):
    before = listing(copy)
    with pytest.raises(ExportError, match="is not empty and not a bundle"):
        export_checkpoint(copy, copy, calibration=rows, overwrite=True)
    assert listing(copy) == before


def test_export_refuses_a_window_shorter_than_the_context(tmp_path):
    folder = make_checkpoint(tmp_path / "ckpt", "mistral", sliding_window=128)
    with pytest.raises(
        UnsupportedCheckpointError, match=r"sliding window of 128 tokens is shorter than limits\.context, 256"
    ):
        export_checkpoint(folder, tmp_path / "out")
    assert listing(tmp_path) == ["ckpt"]


@pytest.mark.parametrize(
    ("line", "message"),
    [('{"prompt": "x"}', "line 1: expected an object with prompt and"), ("oops", "line 1"), ("", "holds no pair")],
)
def test_export_refuses_bad_calibration_rows(line, message, checkpoint, tmp_path):
    (tmp_path / "rows.jsonl").write_text(line)
    with pytest.raises(FsrmError, match=message):
        export_checkpoint(checkpoint, tmp_path / "out", calibration=tmp_path / "rows.jsonl")


def test_export_refuses_unknown_kinds(checkpoint, tmp_path):
    with pytest.raises(ExportError, match="--fast is 'int2', expected one of int8, int4, fp32"):
        export_checkpoint(checkpoint, tmp_path / "out", fast="int2")
    with pytest.raises(ExportError, match="unknown tolerance 'speed'"):
        export_checkpoint(checkpoint, tmp_path / "out", tolerance={"speed": 1})


def test_atomic_folder_appears_at_the_end_only(tmp_path):
    with atomic_folder(tmp_path / "out", overwrite=False) as folder:
        (folder / "fsrm.json").write_text("new")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out/fsrm.json").read_text() == "new"
    assert listing(tmp_path) == ["out"]


def interrupted(target):
    with atomic_folder(target, overwrite=True) as folder:
        (folder / "fsrm.json").write_text("new")
        raise KeyboardInterrupt


def test_atomic_folder_leaves_the_old_bundle_when_the_new_one_fails(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/fsrm.json").write_text(BUNDLE)
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "out")
    assert (tmp_path / "out/fsrm.json").read_text() == BUNDLE
    with atomic_folder(tmp_path / "out", overwrite=True) as folder:
        (folder / "fsrm.json").write_text("new")
    assert (tmp_path / "out/fsrm.json").read_text() == "new"
    assert listing(tmp_path) == ["out"]


def test_atomic_folder_never_clobbers(tmp_path):
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(ExportError, match="is a file; expected a folder"),
        atomic_folder(tmp_path / "file", overwrite=True),
    ):
        pytest.fail("entered")
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.txt").write_text("x")
    with (
        pytest.raises(ExportError, match="is not empty and not a bundle"),
        atomic_folder(tmp_path / "home", overwrite=True),
    ):
        pytest.fail("entered")
    (tmp_path / "home/fsrm.json").write_text(json.dumps(SPEC))  # a trainer's fragment is not a bundle's manifest
    with (
        pytest.raises(ExportError, match="is not empty and not a bundle"),
        atomic_folder(tmp_path / "home", overwrite=True),
    ):
        pytest.fail("entered")
    (tmp_path / "home/fsrm.json").write_text(BUNDLE)
    with (
        pytest.raises(ExportError, match="holds a bundle already; name another folder or pass --overwrite"),
        atomic_folder(tmp_path / "home", overwrite=False),
    ):
        pytest.fail("entered")
    assert listing(tmp_path) == ["file", "home"]


def test_atomic_folder_clears_up_after_killed_exports(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".out.partial-{dead.pid}-abc").mkdir()
    (tmp_path / f".out.partial-{os.getpid()}-abc").mkdir()
    (tmp_path / f".out.old-{dead.pid}-abc").mkdir()
    (tmp_path / f".out.old-{dead.pid}-abc/fsrm.json").write_text(BUNDLE)
    with pytest.raises(ExportError, match="holds a bundle already"), atomic_folder(tmp_path / "out", overwrite=False):
        pytest.fail("the bundle that stepped aside came back, so it must not be clobbered")
    assert listing(tmp_path) == [f".out.partial-{os.getpid()}-abc", "out"]


@pytest.mark.parametrize("limit_bytes", [8_000, pytest.param(400_000, marks=pytest.mark.slow)])
def test_export_on_a_full_disk_says_so_and_leaves_nothing(limit_bytes, checkpoint, rows, tmp_path):
    # A limit on the size of files is a full disk that needs no privileges; the larger one strikes at the GGUF.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        with pytest.raises(FsrmError) as caught:
            export_checkpoint(checkpoint, tmp_path / "out", calibration=rows, tolerance=LOOSE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert listing(tmp_path) == []


def test_cli_prints_the_table_and_the_stages(checkpoint, rows, tmp_path):
    arguments = [
        str(checkpoint),
        "-o",
        str(tmp_path / "out"),
        "--slow",
        "none",
        "--calibration",
        str(rows),
        "--tolerance",
        "delta-score=0.5",
        *ANY_MASS,
    ]
    result = CliRunner().invoke(export, [*arguments, "--tolerance", "decisions=0", "--tolerance", "routes=0"])
    assert result.exit_code == 0, result.output
    assert "| against the checkpoint in float32 | fast (int8) |" in result.stdout
    assert "reference scores ..." in result.stderr
    assert Bundle.open(tmp_path / "out").manifest.card["parity"]["fast"]["tolerance"] == {
        "delta_score": 0.5,
        "label_mass": 0.0,
        "decisions": 0.0,
        "routes": 0.0,
    }


def test_cli_out_of_tolerance_exits_1(checkpoint, rows, tmp_path):
    arguments = [
        str(checkpoint),
        "-o",
        str(tmp_path / "out"),
        "--slow",
        "none",
        "--calibration",
        str(rows),
        "--tolerance",
        "delta_score=0",
        *ANY_MASS,
    ]
    result = CliRunner().invoke(export, arguments)
    assert result.exit_code == 1
    assert "out of tolerance" in result.stderr
    assert listing(tmp_path) == []


def test_cli_says_what_it_wrote_where_the_slow_file_alone_is_out_of_tolerance(checkpoint, rows, tmp_path, monkeypatch):
    monkeypatch.setattr("fsrm_lite.export.pipeline.violations", lambda *_: Violations(slow=("the verdicts are off",)))
    out = tmp_path / "out"
    result = CliRunner().invoke(
        export,
        [str(checkpoint), "-o", str(out), "--fast", "fp32", "--slow", "f16", "--calibration", str(rows), *ANY_MASS],
    )
    assert result.exit_code == 1
    assert "slow: the verdicts are off; or write it anyway with --force; the fast file is within" in result.stderr
    assert f"{out} was written without the slow one" in result.stderr
    assert not Bundle.open(out).has("slow")


def test_cli_help_names_every_tolerance():
    shown = " ".join(CliRunner().invoke(export, ["--help"]).stdout.split())
    for field in fields(Tolerance):
        assert field.name in shown
    assert "except where the GGUF file alone is out of tolerance" in shown


def test_a_reading_that_is_not_measured_is_told(checkpoint):
    pair = "<|im_start|>user\n{prompt}\nAssistant 1: {response_a}\nAssistant 2: {response_b}\n<|im_end|>\n"
    both = {**SPEC, "templates": {**SPEC["templates"], "pairwise_fast": {"text": pair}}, "pair_labels": ["1", "2"]}
    plan_export = importlib.import_module("fsrm_lite.export.plan").plan_export
    options = dict.fromkeys(("recipe", "name", "slow", "calibration", "tolerance", "card"))
    assert plan_export(checkpoint, spec=SPEC, fast="int8", **options).sentences() == []
    (told,) = plan_export(checkpoint, spec=both, fast="int8", **options).sentences()
    assert told.startswith("not measured: how the exported files read pairs (template 'pairwise_fast')")


PAIRS = {
    **{name: value for name, value in SPEC.items() if name != "labels"},
    "pair_labels": ["1", "2"],
    "templates": {
        "pairwise_fast": {
            "text": "<|im_start|>user\n{prompt}\n1: {response_a}\n2: {response_b}<|im_end|>\n<|im_start|>assistant\n"
        },
        "pairwise_slow": SPEC["templates"]["pairwise_slow"],
    },
}


@pytest.fixture(scope="module")
def pairs_only(checkpoint, rows, tmp_path_factory):
    """A model that reads pairs and gives no score to a single response."""
    out = tmp_path_factory.mktemp("pairs") / "tiny"
    export_checkpoint(checkpoint, out, spec=PAIRS, fast="fp32", slow="f16", calibration=rows, tolerance=LOOSE)
    with FastSlowRM.from_pretrained(out, threads=1) as rm:
        yield rm


def test_best_of_n_by_pairs_ranks_last_what_is_too_long_to_be_read(pairs_only):
    answers = ["It is 5.", "five " * 300, "It is 6.", ""]
    chosen = pairs_only.best_of_n("How much is 2 + 3?", answers, judge="never")
    assert set(chosen.ranking[:2]) == {0, 2}
    # Each of these fits beside a short one, but not beside the other.
    short, *many = (pairs_only.encode("How much is 2 + 3?", "It is " + "so " * n) for n in range(256))
    most = next(n for n, one in enumerate(many) if not pairs_only.fast.pair_fits(short, one))
    long = ["It is " + "so " * (most - k) for k in (20, 30)]
    chosen = pairs_only.best_of_n("How much is 2 + 3?", ["It is 5.", *long], judge="never", strategy="elo")
    assert [c.p_first for c in chosen.comparisons if 0 not in c.pair] == [0.5]
    thought = pairs_only.best_of_n("How much is 2 + 3?", ["It is 5.", *long], judge="always", strategy="elo", votes=2)
    assert {c.route for c in thought.comparisons if 0 not in c.pair} == {"fast"}  # the judge has no room for it either
    assert pairs_only.best_of_n("How much is 2 + 3?", ["five " * 300, "It is 5."], judge="never").ranking == (1, 0)
    assert pairs_only.best_of_n("How much is 2 + 3?", ["It is 5.", "a" * (2**20 + 1), "6"]).ranking[-1] == 1
    with pytest.raises(ContextOverflowError):
        pairs_only.best_of_n("How much is 2 + 3?", ["five " * 300, "six " * 300], judge="never")


def test_best_of_n_by_pairs_goes_by_what_was_read_where_the_judge_fails(pairs_only, monkeypatch):
    def fail(*_, **__):
        raise JudgeError("out of memory")

    texts = [f"It is {i}." for i in range(6)]
    pairs_only.fast.forget()
    read = pairs_only.best_of_n("How much is 2 + 3?", texts, judge="never")
    assert any(match.winner for match in read.comparisons)  # the first one does not win every match
    monkeypatch.setattr(pairs_only._slow, "compare", fail)
    pairs_only.fast.forget()
    failed = pairs_only.best_of_n("How much is 2 + 3?", texts, judge="always", on_judge_error="fast")
    assert failed.ranking == read.ranking


def test_cli_refuses_malformed_options_before_any_work(checkpoint, tmp_path):
    result = CliRunner().invoke(export, [str(checkpoint), "-o", str(tmp_path / "out"), "--tolerance", "delta_score"])
    assert result.exit_code == 2
    assert "is not NAME=VALUE" in result.stderr
    result = CliRunner().invoke(export, [str(checkpoint), "-o", str(tmp_path / "out"), "--push-to-hub", "nonsense"])
    assert result.exit_code == 2
    assert result.stderr == "Error: --push-to-hub is 'nonsense', expected 'org/name'\n"
    result = CliRunner().invoke(export, [str(tmp_path / "nowhere"), "-o", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "nowhere is no folder, and no name on the hub either" in result.stderr
    assert listing(tmp_path) == []


MATRIX = {
    "qwen2-tied": (
        "qwen2",
        {"num_attention_heads": 4, "num_key_value_heads": 1, "tie_word_embeddings": True, "vocab_size": 441},
    ),
    "qwen2-bf16": (
        "qwen2",
        {"hidden_size": 120, "num_attention_heads": 10, "num_key_value_heads": 5, "dtype": "bfloat16", "shard": "90KB"},
    ),
    "qwen3": ("qwen3", {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 40}),
    "qwen3-bf16": ("qwen3", {"tie_word_embeddings": True, "dtype": "bfloat16"}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True, "hidden_size": 84, "intermediate_size": 142}),
    "llama3": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10_000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "mistral": ("mistral", {"num_attention_heads": 8, "num_key_value_heads": 2, "sliding_window": 256}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", MATRIX)
def test_architecture_matrix_is_within_the_default_tolerances(case, tmp_path):
    family, overrides = MATRIX[case]
    folder = make_checkpoint(tmp_path / "ckpt", family, **{"scale": 0.02, **overrides})
    assert family in FAMILIES
    default = export_checkpoint(folder, tmp_path / "default")
    assert default.card["parity"]["passed"]
    assert default.card["parity"]["calibration"]["pairs"] >= 500
    exact = export_checkpoint(folder, tmp_path / "exact", fast="fp32", slow="none")
    assert exact.card["parity"]["fast"]["max_delta_logit"] <= 1e-4
    assert exact.card["parity"]["fast"]["rank_correlation"] > 0.9999


@pytest.mark.slow
def test_hostile_outlier_channels_break_naive_quantization_and_not_the_export(tmp_path):
    folder = make_hostile(make_checkpoint(tmp_path / "ckpt", "qwen3", scale=0.02))
    parity = export_checkpoint(folder, tmp_path / "out").card["parity"]
    assert parity["passed"]
    assert parity["slow"]["smoothed"]
    assert parity["slow"]["rank_correlation"] > 0.99
    assert len(parity["fast"]["kept_fp32"]) < 17


@pytest.mark.slow
def test_killed_exports_leave_a_whole_bundle_or_none(checkpoint, rows, tmp_path):
    code = "import sys; from fsrm_lite.export import export_checkpoint; print('go', flush=True); "
    code += f"export_checkpoint(sys.argv[1], sys.argv[2], calibration=sys.argv[3], overwrite=True, tolerance={LOOSE!r})"
    rng = np.random.default_rng(7)
    out, finished = tmp_path / "out", 0
    for _ in range(8):
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(checkpoint), str(out), str(rows)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        child.stdout.readline()
        try:
            finished += child.wait(timeout=rng.uniform(0.5, 8.0)) == 0
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.wait()
        child.stdout.close()
        if out.exists():
            Bundle.open(out).check()
    export_checkpoint(checkpoint, out, calibration=rows, overwrite=True, tolerance=LOOSE)
    Bundle.open(out).check()
    assert listing(tmp_path) == ["out"]
