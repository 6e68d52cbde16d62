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
from fsrm_lite.loops.critic_inputs import LIKELIHOOD_STATISTICS, likelihood_statistics, reader_of
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


def sums(questions=150, seed=0):
    """Traces of the embedded model's kind: right and wrong sums, the wrong ones with a step that it must find odd."""
    rng = np.random.default_rng(seed)
    traces = []
    for q in range(questions):
        a, b = (int(x) for x in rng.integers(1, 10, size=2))
        question = f"Mia has {a} pens. Mia finds {b} more. How many pens does Mia have now?" + " " * (q % 7)
        for k, off in enumerate((0, int(rng.integers(1, 5)))):
            answer = a + b + off
            text = f"{a} + {b} = {answer}. The answer is {answer} pens."
            traces.append(Trace(question, str(a + b), k, text, str(answer), int(not off), 5))
    return traces


@pytest.mark.parametrize("inputs", ["likelihood", "pooled"])
def test_a_head_on_the_likelihood_tells_what_the_model_would_not_write(tmp_path, rm, inputs):
    traces = list({(t.question, t.response): t for t in sums()}.values())
    report = fit_critic(traces, rm, tmp_path, inputs=inputs)
    assert report.auroc > 0.9
    assert json.loads((tmp_path / "critic.json").read_text())["inputs"] == inputs
    critic = HeadCritic(tmp_path, rm)
    items = [(t.question, t.response) for t in traces[:20]] + [("", ""), ("q", "")]
    found = critic.review(items)
    assert found[-2:] == [REJECTED, REJECTED]
    assert critic.review(items[:1]) == found[:1]  # a trace is read by itself
    assert np.mean([r.accept == bool(t.label) for r, t in zip(found, traces, strict=False)]) > 0.7
    written = (tmp_path / "critic.json").read_text()
    (tmp_path / "critic.json").write_text(written.replace(f'"{inputs}"', '"hidden"'))
    with pytest.raises(BundleError, match="numbers of each response, and 192 were read"):
        HeadCritic(tmp_path, rm).review(items)
    (tmp_path / "critic.json").write_text(written.replace(f'"{inputs}"', '"stars"'))
    with pytest.raises(BundleError, match="inputs is 'stars'"):
        HeadCritic(tmp_path, rm)


def test_a_reader_of_the_likelihood_keeps_the_hidden_state_before_it(rm):
    (trace,) = sums(1)[:1]
    items = [(trace.question, trace.response), (trace.question, " "), (trace.question, "7")]
    plain, follow = (reader_of(rm, inputs).read(items) for inputs in ("hidden", "likelihood"))
    assert [r is None for r in follow] == [r is None for r in plain] == [False, True, False]
    for one, other in zip(plain, follow, strict=True):
        if one is not None:
            width = len(one.numbers)
            assert len(other.numbers) == width + len(LIKELIHOOD_STATISTICS)
            assert other.numbers[:width] == pytest.approx(one.numbers, abs=0.2)  # int8 sums, other company in the row
            assert other.reading.tokens_read == one.reading.tokens_read + one.reading.tokens_shared


def test_pooled_states_are_those_of_the_question_the_response_and_its_last_token(rm, monkeypatch):
    (trace,) = sums(1)[:1]
    width, follow = rm.bundle.manifest.card["architecture"]["hidden_size"], rm.fast.follow
    (real,) = reader_of(rm, "pooled").read([(trace.question, trace.response)])
    assert real.numbers.shape == (3 * width + len(LIKELIHOOD_STATISTICS),)
    assert real.numbers.dtype == np.float32

    def positions(ids, start, end, *, intermediate):  # every state is the position that it belongs to
        assert intermediate
        return replace(follow(ids, start, end), intermediate=np.arange(len(ids), dtype=np.float32)[:, None])

    monkeypatch.setattr(rm.fast, "follow", positions)
    (found,) = reader_of(rm, "pooled").read([(trace.question, trace.response)])
    ids = rm.encoder.pointwise_fast(trace.question, trace.response)
    last = int(found.numbers[2])
    start = int(2 * found.numbers[1]) - last
    first = int(2 * found.numbers[0]) - (start - 1)
    written = rm.encoder.decode(ids[start : last + 1])
    assert "".join(written.split()) == "".join(trace.response.split())
    before = "".join(rm.encoder.decode(ids[first:start]).split())
    assert before.startswith("".join(trace.question.split()))
    assert first > 0  # the template's beginning is the same for every question
    assert found.numbers[3:] == pytest.approx(real.numbers[3 * width :])


def test_likelihood_statistics_by_hand():
    log_p, best = np.array([-1.0, -5.0, -0.5, -2.0]), np.array([-1.0, -0.1, -0.5, -1.0])
    found = likelihood_statistics(log_p, best, np.array([1.0, 2.0, 3.0, 4.0]))
    assert found == pytest.approx([-8.5, -8 / 3, -8.5 / 4, 2.5, 0.5, np.log(4)], rel=1e-6)
    assert len(found) == len(LIKELIHOOD_STATISTICS)


def test_a_model_without_logits_has_no_likelihood(rm, monkeypatch):
    monkeypatch.setattr(rm.fast.opened, "can_write", False)
    for inputs in ("likelihood", "pooled"):
        with pytest.raises(BundleError, match=r"does not give the logits of its vocabulary.*exported by an older"):
            reader_of(rm, inputs)
    with pytest.raises(InputError, match="inputs is 'length'"):
        reader_of(rm, "length")


def test_a_model_without_states_of_its_middle_is_told_what_else_to_take(tmp_path, rm, monkeypatch):
    monkeypatch.setattr(rm.fast.opened, "gives_intermediate", False)
    with pytest.raises(BundleError, match=r"states of a layer in its middle.*export it again.*or fit .* 'likelihood'"):
        fit_critic(sums(), rm, tmp_path, inputs="pooled")
    assert not list(tmp_path.iterdir())
    with pytest.raises(BundleError, match="gives no intermediate states"):
        rm.fast.follow([1, 2, 3], 1, 2, intermediate=True)
    reader_of(rm, "likelihood")


def test_a_bad_trace_does_not_make_the_others_be_followed_twice(rm, monkeypatch):
    followed, follow = [], rm.fast.follow
    monkeypatch.setattr(rm.fast, "follow", lambda *a, **k: followed.append(a) or follow(*a, **k))
    found = reader_of(rm, "pooled").read([("q", "5"), ("q", ""), ("q", "6"), ("q", "7")])
    assert [one is None for one in found] == [False, True, False, False]
    assert len(followed) == 3
