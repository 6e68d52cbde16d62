import contextlib
import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
from helpers.hostile import changed_anywhere
from scipy.special import expit, logit, logsumexp

import fsrm_lite
from fsrm_lite.errors import DataFormatError, FsrmError
from fsrm_lite.gate import GateSpec
from fsrm_lite.measure.conformance import check, decide, shipped_vectors, vectors

VECTORS = shipped_vectors()


def confidences(response, values, vocab_size):
    """Compute the logit and the word-distribution confidence of one response in another way than the package does."""
    logits = np.clip([float(x) for x in response["label_logits"]], -1e4, 1e4)
    unit = (np.array(values) - min(values)) / (max(values) - min(values))
    with np.errstate(divide="ignore"):
        odds = logsumexp(logits, b=unit) - logsumexp(logits, b=1 - unit)
    p = np.exp(logits - logsumexp(logits))
    entropy = response.get("entropy")
    if entropy is None:
        entropy, vocab_size = -sum(x * math.log(x) for x in p if x > 0), len(p)
    return float(np.clip(odds, -50, 50)), 1 - entropy / math.log(vocab_size)


def independent_decision(spec, logit, distribution):
    intuition = abs(2 * expit(logit / spec["temperature"]) - 1)
    low = [intuition < spec["intuition_threshold"] - 1e-12, distribution < spec["distribution_threshold"] - 1e-12]
    return spec["always"] or (all(low) if spec["combine"] == "all" else any(low))


def test_vectors_are_many_and_cover_the_edges():
    assert len(VECTORS) >= 500
    kinds = [v["kind"] for v in VECTORS]
    assert min(kinds.count(k) for k in ("single", "pair", "candidates", "list", "answer")) >= 100
    logits = [x for v in VECTORS for r in v["responses"] for x in r["label_logits"]]
    assert "inf" in logits
    assert "-inf" in logits
    at_threshold = [v for v in VECTORS if v["expected"].get("intuition_confidence") == v["gate"]["intuition_threshold"]]
    assert len(at_threshold) > 20
    assert len({v["id"] for v in VECTORS}) == len(VECTORS)


def test_shipped_file_is_what_the_generator_makes():
    made = [json.loads(json.dumps(v)) for v in vectors()]
    assert [v["id"] for v in made] == [v["id"] for v in VECTORS]
    for new, old in zip(made, VECTORS, strict=True):
        assert new["responses"] == old["responses"]
        assert new["expected"].pop("contenders", None) == old["expected"].get("contenders")
        assert new["expected"] == pytest.approx({k: v for k, v in old["expected"].items() if k != "contenders"})


def test_this_build_passes_its_own_vectors():
    result = check(VECTORS)
    assert result.ok
    assert result.checked == len(VECTORS)


def test_an_independent_formula_decides_alike():
    for v in VECTORS:
        parts = [confidences(r, v["label_values"], v["vocab_size"]) for r in v["responses"]]
        if v["kind"] == "single":
            assert independent_decision(v["gate"], *parts[0]) == v["expected"]["escalate"], v["id"]
        elif v["kind"] == "pair":
            decision = independent_decision(v["gate"], parts[0][0] - parts[1][0], min(parts[0][1], parts[1][1]))
            assert decision == v["expected"]["escalate"], v["id"]
        elif v["kind"] == "candidates":
            best = v["expected"]["contenders"][0]
            assert parts[best][0] == pytest.approx(max(p[0] for p in parts))


def test_check_reports_a_flipped_decision_and_a_drifted_confidence():
    rows = copy.deepcopy(VECTORS[100:110])
    rows[3]["expected"]["escalate"] = not rows[3]["expected"]["escalate"]
    rows[5]["decision"] = {**rows[5]["expected"], "intuition_confidence": 0.123456}
    result = check(rows)
    assert [m.field for m in result.mismatches] == ["escalate", "intuition_confidence"]
    assert result.mismatches[0].row == rows[3]["id"]
    assert not result.ok


def test_check_answers_shipped_vectors_by_id_alone():
    vector = VECTORS[-1]
    assert check([{"id": vector["id"], "decision": vector["expected"]}]).ok
    with pytest.raises(DataFormatError, match="no shipped vector has the id"):
        check([{"id": "nothing", "decision": {}}])


def test_check_forgives_rounding_of_confidences_but_not_of_decisions():
    row = {
        "gate": {"intuition_threshold": 0.5},
        "label_values": [1, 0],
        "responses": [{"label_logits": [2 * math.atanh(0.5), 0]}],
    }
    exact = decide(row)
    assert check([{**row, "decision": {**exact, "intuition_confidence": exact["intuition_confidence"] + 1e-7}}]).ok
    flipped = check([{**row, "decision": {"escalate": not exact["escalate"]}}])
    assert flipped.mismatches[0].borderline


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"label_values": [1, 0], "responses": [{"label_logits": [1, 0]}], "decision": None}, "'decision' is None"),
        ({"label_values": [1, 0], "responses": [{"label_logits": [1, 0]}], "decision": {}}, "has no 'escalate'"),
        ({"label_values": [1, 0], "responses": [], "decision": {"escalate": True}}, "non-empty list"),
        (
            {"label_values": [1, 0], "responses": [{"label_logits": ["x", 0]}], "decision": {"escalate": True}},
            "is not a number",
        ),
        (
            {
                "label_values": [1, 0],
                "kind": "pair",
                "responses": [{"label_logits": [1, 0]}],
                "decision": {"escalate": True},
            },
            "cannot have 1",
        ),
    ],
)
def test_check_names_the_row_it_cannot_read(row, match):
    with pytest.raises(DataFormatError, match=match):
        check([row], gate=GateSpec())


@pytest.mark.parametrize("row", [{}, {"escalate": False}, {"answer": {"escalate": True}}])
def test_check_passes_no_vector_that_was_not_answered(row):
    with pytest.raises(DataFormatError, match="'decision' is None"):
        check([{"id": "single-0000", **row}])


def test_check_names_a_field_that_is_missing():
    with pytest.raises(DataFormatError, match="row 1: the field 'label_logits' is missing"):
        check([{"label_values": [1, 0], "responses": [{}], "decision": {"escalate": True}}], gate=GateSpec())
    with pytest.raises(DataFormatError, match="no shipped vector has the id"):
        check([{"id": ["x"], "decision": {"escalate": True}}])


def test_check_wants_a_gate_and_rows():
    with pytest.raises(DataFormatError, match="no 'gate'"):
        check([{"label_values": [1, 0], "responses": [{"label_logits": [1, 0]}], "decision": {"escalate": True}}])
    with pytest.raises(DataFormatError, match="no decisions"):
        check([])


def test_vectors_lie_in_the_package():
    assert (Path(fsrm_lite.__file__).parent / "measure" / "gate_vectors.jsonl").is_file()


def independent_shares(v):
    """Share of each team of a list, with softmax over scipy's logsumexp: another way than the package's."""
    rule = v["gate"]["lists"]
    logits = [confidences(r, v["label_values"], v["vocab_size"])[0] for r in v["responses"]]
    names = list(dict.fromkeys(v["teams"]))
    members = {t: [x for x, team in zip(logits, v["teams"], strict=True) if team == t] for t in names}
    worth = [rule["sharpness"] * logsumexp(np.array(members[t]) / rule["temperature"]) for t in names]
    return dict(zip(names, np.exp(worth - logsumexp(worth)), strict=True)), logits


@pytest.mark.parametrize("v", [v for v in VECTORS if v["kind"] == "list"], ids=lambda v: v["id"])
def test_an_independent_formula_finds_the_same_contenders_of_a_list(v):
    shares, logits = independent_shares(v)
    contenders, coverage = v["expected"]["contenders"], v["gate"]["lists"]["coverage"]
    assert v["expected"]["share"] == pytest.approx(max(shares.values()))
    teams = [v["teams"][i] for i in contenders]
    assert len(set(teams)) == len(teams)
    for i in contenders:  # each plays for its team, and is its best
        assert logits[i] == max(x for x, t in zip(logits, v["teams"], strict=True) if t == v["teams"][i])
    covered = [shares[t] for t in teams]
    assert covered == pytest.approx(sorted(covered, reverse=True))
    if coverage < 1:
        assert len(teams) == 1 or sum(covered[:-1]) < coverage  # one contender fewer would not do
        assert sum(covered) >= coverage
    else:
        assert len(contenders) == len(shares)


def test_check_reports_another_contender_of_a_list():
    row = next(v for v in VECTORS if v["kind"] == "list" and len(v["expected"]["contenders"]) > 1)
    wrong = {**row, "decision": {**row["expected"], "contenders": row["expected"]["contenders"][:1]}}
    (mismatch,) = check([wrong]).mismatches
    assert (mismatch.field, mismatch.borderline) == ("contenders", False)
    with pytest.raises(DataFormatError, match="'teams' is None"):
        check([{k: v for k, v in wrong.items() if k != "teams"}])
    with pytest.raises(DataFormatError, match="one team per candidate"):
        check([{**wrong, "teams": [1]}])


@pytest.mark.parametrize("v", [v for v in VECTORS if v["kind"] == "answer"], ids=lambda v: v["id"])
def test_an_independent_formula_answers_alike(v):
    first, second = (confidences(r, v["label_values"], v["vocab_size"])[0] for r in v["responses"])
    for_first = 1 + sum(v["votes"])
    share = for_first / (2 + len(v["votes"]))  # the mean of a beta distribution
    total = v["gate"]["weights"]["fast"] * (first - second) + v["gate"]["weights"]["votes"] * logit(share)
    assert v["expected"]["p_first"] == pytest.approx(expit(np.clip(total, -50, 50)))
    assert v["expected"]["winner"] == (total < 0)


def test_check_reports_another_winner_of_an_answer():
    row = next(v for v in VECTORS if v["kind"] == "answer")
    wrong = {**row, "decision": {"winner": 1 - row["expected"]["winner"]}}
    (mismatch,) = check([wrong]).mismatches
    assert (mismatch.field, mismatch.borderline) == ("winner", False)
    for votes in (None, [], [1.5], ["many"]):
        with pytest.raises(DataFormatError, match=r"'votes' is|is not a number"):
            check([{**wrong, "votes": votes}])
    with pytest.raises(DataFormatError, match="no weights"):
        check([{**wrong, "gate": {}}])


@pytest.mark.parametrize("kind", ["single", "pair", "list", "answer"])
def test_rows_with_any_part_exchanged_are_compared_or_refused_by_our_errors(kind):
    row, used = next(v for v in VECTORS if v["kind"] == kind), 0
    for data in changed_anywhere(row):
        with contextlib.suppress(FsrmError):
            check([data])
            used += 1
    assert used > 10
