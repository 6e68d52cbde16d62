"""Evaluation and calibration on the embedded model: they must see what its users get."""

import json

import pytest

from fsrm_lite.measure.benchmark_formats import load_benchmark
from fsrm_lite.measure.calibration import Goal, calibrate
from fsrm_lite.measure.evaluation import EvalOptions, evaluate, sample
from fsrm_lite.measure.evaluation_report import gated_outcome, summarize
from fsrm_lite.measure.labelled import fast_signals
from fsrm_lite.measure.labelled_rows import collect, read_labelled
from fsrm_lite.models.data import held_out, pair_row


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair_row(p)) + "\n" for p in held_out("test", 60)))
    return path


def test_evaluation_escalates_exactly_what_the_model_escalates(rm, rows):
    benchmark = load_benchmark(rows)
    records = evaluate(rm, benchmark, EvalOptions(judge="never", batch=60))  # one call, as below
    comparisons = rm.compare_many([(x.prompt, *x.responses) for x in benchmark.examples], judge="never")
    assert [r.escalated[0] for r in records] == [
        rm.gate.pair(*map(fast_signals, c.scores)).escalate for c in comparisons
    ]
    assert [x for r in records for x in r.logits] == pytest.approx(
        [s.logit for c in comparisons for s in c.scores], abs=1e-4
    )


@pytest.mark.slow
def test_gated_answers_are_those_of_the_models_own_gate(rm, rows):
    benchmark = load_benchmark(rows)
    options = EvalOptions(judge="auto", limit=16, batch=16)
    records = evaluate(rm, benchmark, options)
    drawn = sample(benchmark.examples, 16)
    own = rm.compare_many([(x.prompt, *x.responses) for x in drawn], judge="auto", seed=0)
    assert [r.escalated[0] for r in records] == [c.escalated for c in own]
    # What else is in a batch changes fast answers not at all, and sampled thoughts only by rounding.
    fast = [(gated_outcome(r, True).decision, c.winner) for r, c in zip(records, own, strict=True) if not c.escalated]
    assert all(a == b for a, b in fast)
    report = summarize(records, benchmark.format, resamples=10)
    assert report["escalated"]["value"] == pytest.approx(sum(c.escalated for c in own) / 16)


def test_calibration_of_the_embedded_model_runs_without_its_judge(rm, rows):
    items = collect(rm, read_labelled(rows).rows, slow=False)
    result = calibrate(items, Goal(risk=0.3), resamples=10)
    assert result.report["always_slow"] is None
    assert len(result.testing) == 48
