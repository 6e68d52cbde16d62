import dataclasses

import numpy as np
import pytest
from helpers.calibration import make_items

from fsrm_lite.gate import AnswerWeights, GateSpec, votes_logit
from fsrm_lite.measure.labelled import Sample
from fsrm_lite.measure.together import shared_errors
from fsrm_lite.models.figures import figures, table

ITEMS = make_items(200)


def measured(gate):
    """What ``measure`` returns, for pairs whose judge votes for the right response or for neither."""
    known = [dataclasses.replace(x, slow_logit=votes_logit([1.0 - x.label] * 2) * x.slow_correct) for x in ITEMS]
    sample = Sample.of(known)
    kind = {
        "pairs": len(known),
        "figures": figures(sample, gate) | {"longer_wins": {"value": 0.5, "low": 0.4, "high": 0.6}},
        "slow_tokens_per_pair": 80.0,
        "errors": shared_errors(sample),
        "breakdown": [],
    }
    weights = None if gate.weights is None else dataclasses.asdict(gate.weights)
    return sample, {"split": "test", "votes_per_order": 1, "weights": weights, **kind, "own": kind}


def test_always_slow_is_what_both_paths_answer_together_where_the_gate_has_weights():
    gate = GateSpec(0.5, weights=AnswerWeights(0.1, 3.0))
    sample, found = measured(gate)
    together = np.where(sample.slow_toward > 0, True, sample.fast_correct)  # where the votes say nothing, fast decides
    assert found["figures"]["slow"]["value"] == pytest.approx(together.mean())
    assert found["figures"]["votes"]["value"] == pytest.approx(sample.slow_correct.mean())
    text = table(found)
    assert "if the votes alone answered" in text
    assert "with the weights 0.100 and 3.000" in text


def test_without_weights_the_table_has_the_votes_alone_and_the_errors_of_both():
    sample, found = measured(GateSpec(0.5))
    assert found["figures"]["slow"] == found["figures"]["votes"]
    text = table(found)
    assert "votes alone" not in text
    both = int((~sample.fast_correct & ~sample.slow_correct).sum())
    assert f"the votes get {both} wrong too, " in text


def test_the_intervals_are_those_of_problem_structures_and_not_of_their_pairs():
    def width(group):
        """Of the fast accuracy's interval, where each item stands there ten times."""
        items = [
            dataclasses.replace(x, key=f"{i} {k}", group=group(i, k)) for i, x in enumerate(ITEMS) for k in range(10)
        ]
        found = figures(Sample.of(items), GateSpec(0.5))["fast"]
        return found["high"] - found["low"]

    assert width(lambda i, k: f"structure {i}") > 2 * width(lambda i, k: f"structure {i} {k}")
