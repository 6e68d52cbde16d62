"""The fitted critic: its network against numpy, its figures against a known truth, its files against tampering."""

import itertools
import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
from helpers.loops import readable_model

from fsrm_lite.errors import BundleError, CalibrationError, InputError, MissingExtraError
from fsrm_lite.export.critic_head import fit_critic, network_bytes
from fsrm_lite.loops.critic import REJECTED, HeadCritic, _open_session
from fsrm_lite.loops.distill import Trace

pytest.importorskip("sklearn")
pytest.importorskip("onnx")


def make_traces(questions=300, samples=3, seed=0):
    """Traces that are right with probability sigmoid(2 * plusses - 4)."""
    rng = np.random.default_rng(seed)
    traces = []
    for q in range(questions):
        for k in range(samples):
            plusses = int(rng.integers(0, 5))
            label = int(rng.random() < 1 / (1 + np.exp(4 - 2 * plusses)))
            traces.append(Trace(f"q{q}", "1", k, f"{rng.integers(1e6)} " + "+" * plusses, str(label), label, 5))
    return traces


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return readable_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("critic")
    return folder, fit_critic(make_traces(), model, folder)


@pytest.mark.parametrize("sizes", [(8, 1), (8, 5, 1), (8, 6, 4, 1)])
def test_network_equals_numpy(tmp_path, sizes):
    rng = np.random.default_rng(1)
    layers = [(rng.normal(size=(a, b)), rng.normal(size=b)) for a, b in itertools.pairwise(sizes)]
    (tmp_path / "net.onnx").write_bytes(network_bytes(layers))
    hidden = rng.normal(size=(7, 8)).astype(np.float32)
    x = hidden.astype(np.float64)
    for i, (w, b) in enumerate(layers):
        x = x @ w + b if i == len(layers) - 1 else np.maximum(x @ w + b, 0)
    found = _open_session(tmp_path / "net.onnx").run(["probability"], {"hidden": hidden})[0]
    assert found.shape == (7, 1)
    assert np.abs(found - 1 / (1 + np.exp(-x))).max() < 1e-5


@pytest.mark.parametrize("head", ["logistic", "mlp"])
def test_fit_finds_the_truth_and_reports_it(tmp_path, model, head):
    report = fit_critic(make_traces(), model, tmp_path, head=head)
    # The best possible AUROC of this truth is 0.91; the stand-in's fast score is noise.
    assert report.auroc > 0.85
    assert report.fast_auroc < 0.62
    assert report.accuracy_low < report.accuracy < report.accuracy_high
    assert report.accuracy > max(report.base_rate, 1 - report.base_rate)
    assert report.ece < 0.12
    assert report.questions >= 20
    assert json.loads((tmp_path / "critic.json").read_text())["report"]["head"] == head


def test_fit_is_deterministic(tmp_path, model, fitted):
    folder, report = fitted
    assert fit_critic(make_traces(), model, tmp_path) == report
    assert (tmp_path / "critic.onnx").read_bytes() == (folder / "critic.onnx").read_bytes()


def test_head_critic_accepts_what_is_likely_right(model, fitted):
    critic = HeadCritic(fitted[0], model)
    verdicts = critic.review([("q", "9 ++++"), ("q", ""), ("q", "9"), ("q", "x" * 500), ("q", "8 +++")])
    assert [v.accept for v in verdicts] == [True, False, False, False, True]
    assert verdicts[1] == verdicts[3] == REJECTED
    assert verdicts[0].score > verdicts[4].score > verdicts[2].score
    assert verdicts[0].tokens_generated == 0
    assert verdicts[0].tokens_read == len("q\n9 ++++\n")
    assert critic.review([]) == []
    assert critic.review([("q", "")]) == [REJECTED]


def test_head_critic_threshold(model, fitted):
    assert not HeadCritic(fitted[0], model, threshold=1.0).review([("q", "++++")])[0].accept
    with pytest.raises(InputError, match="threshold is -1"):
        HeadCritic(fitted[0], model, threshold=-1)


def test_head_critic_calibration_holds_on_new_traces(model, fitted):
    critic, traces = HeadCritic(fitted[0], model), make_traces(seed=5)
    scores = np.array([v.score for v in critic.review([(t.question, t.response) for t in traces])])
    labels = np.array([t.label for t in traces])
    assert abs(scores.mean() - labels.mean()) < 0.05


def tampered(folder, tmp_path, **changes):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    info = json.loads((copy / "critic.json").read_text()) | changes
    (copy / "critic.json").write_text(json.dumps(info))
    return copy


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"format_version": 2}, "format_version 2"),
        ({"sha256": "0"}, "not the file its critic.json describes"),
        ({"backbone_sha256": "0"}, "fitted on 'counting'"),
        ({"threshold": 3}, "threshold is 3"),
        ({"threshold": None}, "threshold is None"),
    ],
)
def test_head_critic_refuses_what_does_not_fit(tmp_path, model, fitted, changes, match):
    with pytest.raises(BundleError, match=match):
        HeadCritic(tampered(fitted[0], tmp_path, **changes), model)


def test_head_critic_missing_or_unreadable_files(tmp_path, model, fitted):
    with pytest.raises(BundleError, match="is not a critic"):
        HeadCritic(tmp_path / "nowhere", model)
    copy = tampered(fitted[0], tmp_path)
    (copy / "critic.json").write_text("{")
    with pytest.raises(BundleError, match="is not a critic"):
        HeadCritic(copy, model)


def test_fit_too_few_questions_or_one_kind_of_label(tmp_path, model):
    with pytest.raises(CalibrationError, match="expected at least 20"):
        fit_critic(make_traces(questions=30), model, tmp_path)
    with pytest.raises(CalibrationError, match="1 kinds of label"):
        fit_critic([replace(t, label=1) for t in make_traces()], model, tmp_path)
    with pytest.raises(CalibrationError, match="0 questions"):
        fit_critic([], model, tmp_path)


def test_fit_bad_arguments(tmp_path, model):
    with pytest.raises(InputError, match="head is 'forest'"):
        fit_critic(make_traces(), model, tmp_path, head="forest")


@pytest.mark.parametrize(
    ("module", "match"), [("sklearn.linear_model", r"fsrm-lite\[critic\]"), ("onnx", r"fsrm-lite\[critic\]")]
)
def test_fit_names_the_extra_that_is_missing(tmp_path, model, monkeypatch, module, match):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=match):
        fit_critic(make_traces(questions=200), model, tmp_path)
