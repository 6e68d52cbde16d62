"""FastSlowRM end to end on the embedded model: fast, gate, slow, and what happens without a judge."""

import json
import math
import random
import warnings
from dataclasses import replace

import pytest

from fsrm_lite import Comparison, FastSlowRM, GateSpec, Score, Selection
from fsrm_lite.errors import (
    BundleError,
    ContextOverflowError,
    FsrmError,
    InputError,
    JudgeError,
    JudgeUnavailableError,
    MisuseError,
)
from fsrm_lite.gate import AnswerWeights, votes_logit
from fsrm_lite.types import Route

QUESTION = "Mia has 7 pens. Mia finds 8 more. How many pens does Mia have now?"
RIGHT, WRONG = "7 + 8 = 15. The answer is 15 pens.", "7 + 8 = 15. The answer is 41 pens."


def no_judge(monkeypatch, rm, judge_engine="llama.cpp"):
    """A second model on the same bundle, on a machine where llama-cpp-python cannot be imported."""
    from fsrm_lite.runtimes.llama import engine
    from fsrm_lite.slow import worker

    def missing(*_):
        raise JudgeUnavailableError("llama-cpp-python is not installed; run: pip install 'fsrm-lite[judge]'")

    for module in (engine, worker):
        monkeypatch.setattr(module, "load_llama", missing)
    monkeypatch.setattr(
        engine, "why_not", lambda: "llama-cpp-python is not installed; run: pip install 'fsrm-lite[judge]'"
    )
    return FastSlowRM(rm.bundle, threads=1, judge_engine=judge_engine)


def test_scores_match_the_golden_ones_of_the_bundle(rm):
    golden = rm.bundle.manifest.card["golden"]
    scores = rm.score_many([(g["prompt"], g["response"]) for g in golden], judge="never")
    assert len(golden) >= 10
    for score, g in zip(scores, golden, strict=True):
        assert score.score == pytest.approx(g["score"], abs=0.02)


def test_a_visible_error_scores_lower(rm):
    right, wrong = rm.score_many([(QUESTION, RIGHT), (QUESTION, WRONG)], judge="never")
    assert right.score > wrong.score
    assert (right.route, right.verdict, right.rationale, right.tokens_generated) == (Route.FAST, None, None, 0)


def test_results_are_plain_and_json_ready(rm):
    score = rm.score(QUESTION, RIGHT)
    comparison = rm.compare(QUESTION, RIGHT, WRONG, judge="always")
    selection = rm.best_of_n(QUESTION, [RIGHT, WRONG])
    for result, kind in ((score, Score), (comparison, Comparison), (selection, Selection)):
        assert type(result) is kind
        assert json.loads(json.dumps(result.to_dict()))
    for name in ("score", "logit", "intuition_confidence", "distribution_confidence", "label_mass"):
        assert type(getattr(score, name)) is float


def test_fields_are_in_range_and_consistent(rm, pairs):
    for score in rm.score_many(
        [(p.problem.question, r.text) for p in pairs for r in (p.chosen, p.rejected)], judge="never"
    ):
        assert score.score == pytest.approx(1 / (1 + math.exp(-score.logit)))
        assert score.intuition_confidence == pytest.approx(abs(2 * score.score - 1))
        assert 0 <= score.distribution_confidence <= 1
        assert 0.5 < score.label_mass <= 1


def test_predict_keeps_input_order(rm, pairs):
    items = [(p.problem.question, r.text) for p in pairs[:12] for r in (p.chosen, p.rejected)]
    expected = dict(zip(items, rm.predict(items, judge="never"), strict=True))
    shuffled = random.Random(0).sample(items, len(items))
    assert rm.predict(shuffled, judge="never") == pytest.approx([expected[item] for item in shuffled], abs=5e-3)
    assert all(type(x) is float for x in rm.predict(items[:2], judge="never"))


def test_no_items_give_no_results(rm):
    assert rm.score_many([]) == []
    assert rm.compare_many([]) == []


def test_policies(rm):
    assert rm.compare(QUESTION, RIGHT, WRONG, judge="never").route == Route.FAST
    slow = rm.compare(QUESTION, RIGHT, WRONG, judge="always")
    assert slow.route == Route.SLOW
    assert slow.escalated
    assert slow.winner == 0
    assert {vote.swapped for vote in slow.votes} == {False, True}
    assert slow.tokens_generated == sum(vote.tokens_generated for vote in slow.votes)
    assert "7 + 8 = 15" in slow.rationale


@pytest.mark.parametrize(("threshold", "route"), [(0.0, Route.FAST), (1.0, Route.SLOW)])
def test_the_gate_decides_on_auto(rm, threshold, route):
    with FastSlowRM(rm.bundle, threads=1, gate=GateSpec(intuition_threshold=threshold)) as model:
        comparison = model.compare(QUESTION, RIGHT, "7 + 8 = 15. The answer is 14 pens.")
        score = model.score(QUESTION, RIGHT)
    assert comparison.route == score.route == route
    assert comparison.escalated == score.escalated == (route == Route.SLOW)
    assert bool(comparison.reasons) == (route == Route.SLOW)


def test_pointwise_thought(rm):
    right = rm.score(QUESTION, RIGHT, judge="always", temperature=0.0)
    wrong = rm.score(QUESTION, "16 pens", judge="always", temperature=0.0)
    assert (right.verdict, wrong.verdict) == ("Yes", "No")
    assert right.score > 0.5 > wrong.score
    assert right.tokens_generated > 0


def test_swapping_a_pair_swaps_the_winner(rm, pairs):
    asked = [(p.problem.question, p.chosen.text, p.rejected.text) for p in pairs[:10]]
    forward = rm.compare_many(asked, judge="always", temperature=0.0)
    backward = rm.compare_many([(q, b, a) for q, a, b in asked], judge="always", temperature=0.0)
    for there, back in zip(forward, backward, strict=True):
        assert there.winner == 1 - back.winner
        assert there.p_first == pytest.approx(1 - back.p_first, abs=0.02)


def test_same_seed_same_votes(rm, pairs):
    asked = [(p.problem.question, p.chosen.text, p.rejected.text) for p in pairs[:6]]
    assert rm.compare_many(asked, judge="always", seed=3) == rm.compare_many(asked, judge="always", seed=3)


def test_equal_responses_are_never_judged(rm):
    draw = rm.compare(QUESTION, RIGHT, RIGHT, judge="always")
    assert (draw.route, draw.winner, draw.p_first, draw.votes) == (Route.FAST, 0, 0.5, ())


def test_rank_has_the_shape_people_know(rm):
    responses = [WRONG, RIGHT, "I do not know."]
    ranked = rm.rank(QUESTION, responses, judge="never")
    assert [set(row) for row in ranked] == [{"corpus_id", "score", "text"}] * 3
    assert ranked[0] == {"corpus_id": 1, "score": ranked[0]["score"], "text": RIGHT}
    assert [row["score"] for row in ranked] == sorted((row["score"] for row in ranked), reverse=True)
    assert rm.rank(QUESTION, responses, top_k=1, judge="never") == ranked[:1]
    with pytest.raises(InputError, match="top_k is 0"):
        rm.rank(QUESTION, responses, top_k=0)


@pytest.mark.parametrize("strategy", ["fast", "gated", "knockout", "elo", "majority"])
def test_best_of_n_finds_the_right_one(rm, strategy):
    responses = [WRONG, "I do not know.", RIGHT, "15 pens", ""]
    selection = rm.best_of_n(QUESTION, responses, strategy=strategy)
    assert selection.index in (2, 3)
    assert sorted(selection.ranking) == [0, 1, 2, 3, 4]
    assert selection.ranking[-1] == 4
    assert selection.strategy == strategy
    assert len(selection.scores) == 5


def test_best_of_n_without_thinking_makes_no_slow_comparison(rm):
    selection = rm.best_of_n(QUESTION, [WRONG, RIGHT, "16 pens"], strategy="knockout", judge="never")
    assert selection.tokens_generated == 0
    assert {c.route for c in selection.comparisons} == {Route.FAST}


def test_best_of_n_always_judges_even_where_the_gate_is_sure(rm):
    responses = [WRONG, RIGHT, "I do not know."]
    with FastSlowRM(rm.bundle, threads=1, gate=GateSpec(intuition_threshold=0.0)) as model:
        assert model.best_of_n(QUESTION, responses).comparisons == ()
        judged = model.best_of_n(QUESTION, responses, judge="always")
    assert judged.index == 1
    assert [c.route for c in judged.comparisons] == [Route.SLOW] * 2


def test_missing_judge_falls_back_with_one_warning(rm, monkeypatch):
    model = no_judge(monkeypatch, rm)
    unsure = (QUESTION, "15 pens", "16 pens")
    model.gate = type(model.gate)(GateSpec(intuition_threshold=1.0))
    with pytest.warns(UserWarning, match=r"pip install 'fsrm-lite\[judge\]'"):
        comparison = model.compare(*unsure)
    assert (comparison.escalated, comparison.route) == (True, Route.FAST)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.score(QUESTION, RIGHT).escalated
        assert model.best_of_n(QUESTION, ["15 pens", "16 pens"]).index in (0, 1)


def test_always_without_a_judge_raises(rm, monkeypatch):
    model = no_judge(monkeypatch, rm)
    with pytest.raises(JudgeUnavailableError, match="pip install"):
        model.compare(QUESTION, RIGHT, WRONG, judge="always")


def test_without_llama_the_fast_graph_thinks(rm, monkeypatch):
    model = no_judge(monkeypatch, rm, "auto")
    assert model.judge_engine.engine == "onnx"
    comparison = model.compare(QUESTION, RIGHT, WRONG, judge="always")
    assert (comparison.route, comparison.winner, len(comparison.votes)) == (Route.SLOW, 0, 2)
    assert all(not vote.closed for vote in comparison.votes)
    assert model.best_of_n(QUESTION, [WRONG, RIGHT], judge="always").index == 1
    model.close()


def test_both_engines_think_alike(rm, pairs):
    pytest.importorskip("llama_cpp")
    items = [(p.problem.question, p.chosen.text, p.rejected.text) for p in pairs[:6]]
    with FastSlowRM(rm.bundle, threads=1, judge_engine="onnx") as graph:
        ours = graph.compare_many(items, judge="always", temperature=0.0)
    with FastSlowRM(rm.bundle, threads=1, judge_engine="llama.cpp") as llama:
        theirs = llama.compare_many(items, judge="always", temperature=0.0)
    assert [c.winner for c in ours] == [c.winner for c in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert [vote.rationale for vote in a.votes] == [vote.rationale for vote in b.votes]
        assert a.p_first == pytest.approx(b.p_first, abs=0.02)


def test_a_graph_that_cannot_think_says_what_to_do(rm, monkeypatch):
    model = no_judge(monkeypatch, rm, "onnx")
    model.fast.opened.can_think = False
    with pytest.raises(BundleError, match="export the bundle again"):
        model.compare(QUESTION, RIGHT, WRONG, judge="always")
    model.close()


def test_long_text_is_an_error_unless_cutting_was_asked_for(rm):
    long = "12 + 5 = 17. " * 200
    with pytest.raises(ContextOverflowError, match=r"item 1: .* 512"):
        rm.score_many([(QUESTION, RIGHT), (QUESTION, long)])
    with FastSlowRM(rm.bundle, threads=1, truncate=True, judge="never") as model:
        assert 0 <= model.score(QUESTION, long).score <= 1
        assert len(model.encode(QUESTION, long).text) < len(long)


def test_a_response_that_is_cut_still_answers_what_its_end_says(rm):
    long = "12 + 5 = 17. " * 200 + "The answer is 17."
    responses = ["The answer is 16.", long, "The answer is 17."]
    with FastSlowRM(rm.bundle, threads=1, truncate=True, judge="never") as model:
        encoded = [model.encode(QUESTION, text) for text in responses]
        assert encoded[1].text != encoded[1].whole == long
        for strategy in ("majority", "gated"):
            chosen = model.best_of_n(QUESTION, encoded, strategy=strategy)
            assert chosen.ranking == model.best_of_n(QUESTION, responses, strategy=strategy).ranking
            assert chosen.ranking[1] != 0  # the two that say the same stand next to each other


def test_what_is_too_long_for_the_judge_alone_stays_fast(rm):
    long = "12 + 5 = 17. " * 28
    with FastSlowRM(rm.bundle, threads=1, gate=GateSpec(always=True)) as model:
        comparisons = model.compare_many([(QUESTION, RIGHT, WRONG), (QUESTION, long, long + "17")])
        assert [c.route for c in comparisons] == [Route.SLOW, Route.FAST]
        assert comparisons[1].escalated
        with pytest.raises(ContextOverflowError):
            model.compare(QUESTION, long, long + "17", judge="always")


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda rm: rm.score(QUESTION, ""), "item 0: the response is empty"),
        (lambda rm: rm.score(QUESTION, None), "item 0: the response is null"),
        (lambda rm: rm.score(3, RIGHT), "the prompt is of type int"),
        (lambda rm: rm.compare(QUESTION, RIGHT, " "), "response is empty"),
        (lambda rm: rm.best_of_n(QUESTION, []), "0 responses"),
        (lambda rm: rm.best_of_n(QUESTION, [RIGHT], strategy="magic"), "strategy is 'magic'"),
        (lambda rm: rm.best_of_n(QUESTION, [RIGHT], nonsense=1), r"unknown options \['nonsense'\]"),
        (lambda rm: rm.score(QUESTION, RIGHT, judge="maybe"), "judge is 'maybe'"),
        (lambda rm: rm.score(QUESTION, RIGHT, votes=0), "votes is 0"),
        (lambda rm: rm.score(QUESTION, RIGHT, votes=10_000), "votes is 10000"),
        (lambda rm: FastSlowRM(rm.bundle, on_judge_crash="maybe"), "on_judge_crash is 'maybe'"),
        (lambda rm: FastSlowRM(rm.bundle, judge_process="maybe"), "judge_process is 'maybe'"),
        (lambda rm: FastSlowRM(rm.bundle, threads=0), "threads is 0"),
        (lambda rm: FastSlowRM(rm.bundle, threads=10**6), "threads is 1000000"),
        (lambda rm: rm.predict((QUESTION, RIGHT)), "item 0 is not a"),
        (lambda rm: rm.compare_many([(QUESTION, RIGHT)]), r"item 0 is not a \(prompt, first, second\)"),
        (lambda rm: rm.rank(QUESTION, RIGHT), "the responses are one string"),
        (lambda rm: rm.best_of_n(QUESTION, RIGHT), "the responses are one string"),
        (lambda rm: rm.best_of_n(None, ["", ""]), "the prompt is null"),
    ],
)
def test_bad_input_is_our_error(rm, call, text):
    with pytest.raises(InputError, match=text):
        call(rm)


def test_a_missing_model_is_our_error(tmp_path):
    with pytest.raises(BundleError):
        FastSlowRM.from_pretrained(tmp_path / "nothing")
    assert issubclass(BundleError, FsrmError)


def test_a_deadline_without_a_vote_leaves_the_fast_result(rm):
    fast, cut = (rm.compare(QUESTION, RIGHT, WRONG, judge=policy, deadline=0.0) for policy in ("never", "always"))
    assert (cut.route, cut.escalated, cut.complete, cut.votes) == (Route.FAST, True, False, ())
    assert (cut.winner, cut.p_first) == (fast.winner, fast.p_first)
    score = rm.score(QUESTION, RIGHT, judge="always", deadline=0.0)
    assert (score.route, score.complete, score.verdict) == (Route.FAST, False, None)


def test_close_is_safe_to_repeat_and_final(rm):
    model = FastSlowRM(rm.bundle, threads=1)
    model.compare(QUESTION, RIGHT, WRONG, judge="always")
    model.close()
    model.close()
    with pytest.raises(JudgeError, match="closed"):
        _ = model.judge


def test_a_model_opened_before_a_fork_says_so(rm, monkeypatch):
    monkeypatch.setattr(
        "fsrm_lite.runtimes.owner.os.getpid", lambda: -1
    )  # what a forked child sees; its threads did not come along
    with pytest.raises(InputError, match="before a fork"):
        rm.score(QUESTION, RIGHT, judge="never")


def test_any_iterable_of_candidates_will_do(rm):
    assert rm.best_of_n(QUESTION, (r for r in (WRONG, RIGHT)), judge="never").index == 1


LONG = "12 + 5 = 17. " * 200
BAD = ["", " \n", LONG, "half a \ud83d", None, 7]


@pytest.mark.parametrize("bad", BAD, ids=["empty", "blank", "long", "surrogate", "null", "number"])
def test_each_bad_item_costs_only_itself(rm, bad):
    items = [(QUESTION, RIGHT), (QUESTION, bad), (QUESTION, WRONG), ("", RIGHT)]
    good, error, other, prompt = rm.score_each(items, judge="never")
    expected = rm.score_many([items[0], items[2]], judge="never")
    assert [good.score, other.score] == pytest.approx([s.score for s in expected], abs=5e-3)
    assert isinstance(error, InputError)
    assert "the prompt is empty" in str(prompt)
    pairs = [(QUESTION, RIGHT, WRONG), (QUESTION, RIGHT, bad), (QUESTION, WRONG, RIGHT)]
    first, error, second = rm.compare_each(pairs, judge="never")
    assert (first.winner, second.winner) == (0, 1)
    assert isinstance(error, InputError)


@pytest.mark.parametrize("options", [{"judge": "perhaps"}, {"votes": 0}, {"nonsense": 1}])
def test_a_bad_option_is_no_bad_item(rm, options):
    for call, items in ((rm.score_each, [(QUESTION, RIGHT)]), (rm.compare_each, [(QUESTION, RIGHT, WRONG)])):
        with pytest.raises(InputError):
            call(items, **options)


def test_a_closed_model_is_no_bad_item(rm):
    model = FastSlowRM(rm.bundle, threads=1)
    model.close()
    with pytest.raises(MisuseError, match="closed"):
        model.score_each([(QUESTION, RIGHT)], judge="never")


def test_a_candidate_that_is_too_long_ranks_last_like_an_empty_one(rm):
    for strategy in ("fast", "gated", "knockout", "elo", "majority"):
        selection = rm.best_of_n(QUESTION, [LONG, RIGHT, "", WRONG], strategy=strategy, judge="never")
        assert selection.ranking[:2] == (1, 3)
        assert set(selection.ranking[2:]) == {0, 2}
        assert "tokens, the context holds" in selection.scores[0].reasons[0]
        assert not {0, 2} & {i for match in selection.comparisons for i in match.pair}
    with pytest.raises(ContextOverflowError):
        rm.best_of_n(QUESTION, [LONG, ""], judge="never")


def test_deterministic_scores_are_the_same_bits_alone_and_in_any_company(rm):
    items = [(QUESTION, f"The answer is {i} pens.") for i in range(12)] + [("What is 2 + 3?", "5")]
    with FastSlowRM(rm.bundle, threads=1, deterministic=True, judge="never") as model:
        together = [s.logit for s in model.score_many(items)]
        assert [s.logit for s in model.score_many(items[::-1])][::-1] == together
        assert [model.score(*item).logit for item in items] == together
        ranked = model.rank(QUESTION, [response for _, response in items[:12]])
        alone = model.predict(items)
        assert all(entry["score"] == alone[entry["corpus_id"]] for entry in ranked)


def test_alone_and_in_company_the_scores_differ_by_no_more_than_is_said(rm):
    """docs/determinism.md gives this bound for the embedded model."""
    items = [(QUESTION, f"7 + 8 = {i}. The answer is {i} pens.") for i in range(40)]
    together = rm.predict(items, judge="never")
    assert max(abs(rm.predict([item], judge="never")[0] - s) for item, s in zip(items, together, strict=True)) < 1e-2


def test_with_weights_both_paths_answer_together_and_without_them_nothing_changes(rm):
    asked = [(QUESTION, RIGHT, WRONG), (QUESTION, WRONG, RIGHT)]
    with FastSlowRM(rm.bundle, gate=replace(rm.gate.spec, weights=None)) as model:
        alone = model.compare_many(asked, judge="always")
    with FastSlowRM(rm.bundle, gate=replace(rm.gate.spec, weights=AnswerWeights(0.6, 2.0))) as model:
        both = model.compare_many(asked, judge="always")
        fast = model.compare(QUESTION, RIGHT, WRONG, judge="never")
    assert not fast.combined
    for one, other in zip(alone, both, strict=True):
        assert (one.combined, other.combined) == (False, True)
        assert other.votes == one.votes
        together = 0.6 * other.logit + 2.0 * votes_logit([vote.p_first for vote in other.votes])
        assert other.p_first == pytest.approx(1 / (1 + math.exp(-together)))
        assert replace(other, winner=one.winner, p_first=one.p_first, combined=False, rationale=one.rationale) == one
    assert [c.winner for c in both] == [0, 1]
