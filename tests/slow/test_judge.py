import dataclasses
import gc
import json
import math
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.judge import ENGINES, tiny_encoder, tiny_judge_files, write_tiny_gguf, write_tiny_graph
from tokenizers import Tokenizer, models

from fsrm_lite.bundle.encoder import PromptEncoder
from fsrm_lite.bundle.files import Bundle
from fsrm_lite.bundle.manifest import Template
from fsrm_lite.errors import BundleError, ContextOverflowError, InputError, JudgeError
from fsrm_lite.models.data import held_out
from fsrm_lite.runtimes.opening import open_engine
from fsrm_lite.slow.judge import Judge, resolve_form
from fsrm_lite.slow.voting import majority
from fsrm_lite.types import ANSWER_TOKENS, JudgeOptions

PAIRS = [
    ("What is 1 + 1?", "2", "3"),
    ("What is 2 + 2?", "I think it is 5.", "4"),
    ("Name a colour.", "red", "Tuesday"),
]


@pytest.fixture(scope="module", params=ENGINES)
def files(request, tmp_path_factory):
    return tiny_judge_files(tmp_path_factory.mktemp("slow"), request.param)


@pytest.fixture(scope="module")
def encoder(files):
    return files[1]


@pytest.fixture(scope="module")
def judge(files):
    judge = Judge(*files, threads=1)
    yield judge
    judge.close()


def test_compare_asks_each_pair_in_both_orders(judge):
    judgements = judge.compare(PAIRS, JudgeOptions(votes=3, adaptive=False))
    assert len(judgements) == 3
    for j in judgements:
        assert [v.swapped for v in j.votes] == [False, True] * 3
        assert j.winner == majority(j.votes)
        assert j.p_first == pytest.approx(sum(v.p_first for v in j.votes) / 6)
        assert all(0.0 <= v.p_first <= 1.0 for v in j.votes)
        assert j.orders_agree == (majority(j.votes[::2]) == majority(j.votes[1::2]))
        assert j.complete
        assert j.tokens_generated == sum(v.tokens_generated for v in j.votes)
        assert j.tokens_saved == 0


def test_one_order_is_enough_where_asked(judge):
    (j,) = judge.compare(PAIRS[:1], JudgeOptions(votes=2, both_orders=False, adaptive=False))
    assert [v.swapped for v in j.votes] == [False, False]
    assert j.orders_agree is None


def test_a_judgement_is_ready_for_json(judge):
    (j,) = judge.compare(PAIRS[:1])
    point = judge.score([PAIRS[0][:2]])[0]
    assert json.loads(json.dumps(dataclasses.asdict(j)))["winner"] == j.winner
    assert json.loads(json.dumps(dataclasses.asdict(point)))["verdict"] in ("Y", "N")


def test_soft_verdict_is_the_models_own_distribution_behind_the_thought(judge, files, encoder):
    """The same prompt, thought and close, through the engine token by token, in a context of its own."""
    (j,) = judge.compare(PAIRS[:1], JudgeOptions(votes=1, adaptive=False, temperature=0.0))
    form = resolve_form(encoder.manifest.templates["pairwise_slow"].verdict, encoder)
    engine = open_engine(files[0], 1)
    for vote, (first, second) in zip(j.votes, [("2", "3"), ("3", "2")], strict=True):
        prompt = encoder.pairwise_slow(PAIRS[0][0], first, second)
        engine.prepare(1, 512)
        ids = list(prompt)
        for _ in range(encoder.manifest.limits.thinking_tokens):
            ids.append(int(next_logits(engine, ids).argmax()))
            if ids[-1] in encoder.manifest.stop_ids:
                ids.pop()
                break
        assert vote.tokens_generated == len(ids) - len(prompt)
        one, two = next_logits(engine, ids + list(form.forced))[list(form.choices)]
        shown_first = 1 / (1 + math.exp(float(two - one)))
        assert vote.p_first == pytest.approx(1 - shown_first if vote.swapped else shown_first, abs=5e-3)
    engine.close()


def next_logits(engine, ids):
    engine.prepare(1, 512)
    for position, token in enumerate(ids):
        row = engine.decode(
            np.array([token], np.int32), np.array([position], np.int32), np.zeros(1, np.int32), outputs=True
        )
    return row[0].copy()


def test_same_call_same_answer(judge, files):
    options = JudgeOptions(votes=3, seed=11)
    first = judge.compare(PAIRS, options)
    judge.compare(
        [("another", "call", "between")] * 9, JudgeOptions(votes=4, thinking_tokens=40)
    )  # a larger context, dirty streams
    other = Judge(*files, threads=1)
    assert judge.compare(PAIRS, options) == first == other.compare(PAIRS, options)
    other.close()


def test_another_seed_gives_other_thoughts(judge):
    one, two = (judge.compare(PAIRS[:1], JudgeOptions(seed=s))[0].votes[0].rationale for s in (0, 1))
    assert one != two


def test_votes_of_one_pair_differ_and_greedy_ones_do_not(judge):
    sampled = judge.compare(PAIRS[:1], JudgeOptions(votes=4, adaptive=False))[0]
    greedy = judge.compare(PAIRS[:1], JudgeOptions(votes=4, adaptive=False, temperature=0.0))[0]
    assert len({v.rationale for v in sampled.votes if not v.swapped}) > 1
    assert len({v.rationale for v in greedy.votes if not v.swapped}) == 1


def test_adaptive_voting_decides_as_full_voting_and_saves_tokens(judge):
    pairs = [(f"Question {i}", f"answer {i % 3}", f"reply {i % 5}") for i in range(12)]
    full = judge.compare(pairs, JudgeOptions(votes=5, adaptive=False, both_orders=False))
    quick = judge.compare(pairs, JudgeOptions(votes=5, both_orders=False))
    assert [q.winner for q in quick] == [f.winner for f in full]
    assert sum(q.tokens_generated for q in quick) < sum(f.tokens_generated for f in full)
    assert sum(q.tokens_saved for q in quick) > 0
    assert all(q.complete for q in quick)


def test_eight_threads_get_what_one_gets(judge):
    options = JudgeOptions(votes=2, seed=3)
    expected = [judge.compare([pair], options) for pair in PAIRS]
    got: dict[int, list] = {}

    def work(k):
        got[k] = [judge.compare([pair], options) for pair in PAIRS]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[k] for k in range(8)] == [expected] * 8


def test_score_reads_the_verdict_distribution(judge):
    scores = judge.score([(p, a) for p, a, _ in PAIRS], JudgeOptions(votes=3))
    for s in scores:
        assert sum(s.p_choices) == pytest.approx(1.0)
        assert s.score == pytest.approx(s.p_choices[0])  # Y is worth 1, N is worth 0
        assert s.logit == pytest.approx(math.log(s.p_choices[0] / s.p_choices[1]), abs=1e-6)
        assert s.verdict in ("Y", "N")
        assert s.complete
    assert scores == judge.score([(p, a) for p, a, _ in PAIRS], JudgeOptions(votes=3))


def test_generate_writes_n_texts_per_prompt(judge, encoder):
    prompts = [encoder.encode_text("abc"), encoder.encode_text("abd")]
    texts = judge.generate(prompts, n=3, max_tokens=7, temperature=1.0, top_p=0.9, seed=5)
    assert [len(group) for group in texts] == [3, 3]
    for generation in texts[0] + texts[1]:
        assert generation.tokens == len(generation.ids) <= 7
        assert generation.text == encoder.decode(list(generation.ids))
    assert len({g.ids for g in texts[0]}) > 1


def test_budget_limits_every_thought(judge):
    (j,) = judge.compare(PAIRS[:1], JudgeOptions(votes=4, thinking_tokens=5, adaptive=False))
    assert all(v.tokens_generated <= 5 + ANSWER_TOKENS for v in j.votes)
    assert any(v.closed and v.tokens_generated == 5 for v in j.votes)


def test_nothing_asked_nothing_answered(judge):
    assert judge.compare([]) == []
    assert judge.score([]) == []
    assert judge.generate([]) == []


@pytest.mark.parametrize("votes", [0, -1, 257, 10_000, 1.5, True])
def test_votes_out_of_range_are_refused(votes):
    with pytest.raises(InputError, match="expected a whole number from 1 to 256"):
        JudgeOptions(votes=votes)


@pytest.mark.parametrize(
    "option",
    [
        {"thinking_tokens": 0},
        {"deadline": -1.0},
        {"deadline": math.nan},
        {"error_rate": 0.5},
        {"seed": 2**127},
        {"seed": 0.5},
    ],
)
def test_options_out_of_range_are_refused(option):
    with pytest.raises(InputError, match=next(iter(option))):
        JudgeOptions(**option)


def test_sampling_out_of_range_is_refused(judge):
    with pytest.raises(InputError, match="temperature"):
        judge.compare(PAIRS, JudgeOptions(temperature=-1.0))


@pytest.mark.parametrize("prompt", [[], [-1], [260]])
def test_prompts_outside_the_vocabulary_are_refused(judge, prompt):
    with pytest.raises(InputError, match="vocabulary of 260"):
        judge.generate([prompt])


def test_a_prompt_longer_than_the_context_is_refused_before_anything_runs(judge):
    with pytest.raises(ContextOverflowError, match="the context holds 512"):
        judge.compare([PAIRS[0], ("q" * 600, "a", "b")])
    with pytest.raises(ContextOverflowError, match="needs 84 more for a verdict"):
        judge.compare([PAIRS[0], ("q" * 390, "a", "b")])  # it fits, but leaves no room to think


def test_thinking_is_cut_to_what_the_context_leaves(judge):
    (j,) = judge.compare([("q" * 340, "a", "b")], JudgeOptions(thinking_tokens=400))
    assert j.complete
    assert all(v.tokens_generated < 200 for v in j.votes)


def test_a_deadline_of_zero_returns_at_once_and_says_so(judge):
    (j,) = judge.compare(PAIRS[:1], JudgeOptions(deadline=0.0))
    assert (j.complete, j.votes, j.p_first, j.winner, j.orders_agree) == (False, (), 0.5, 0, None)
    (s,) = judge.score([PAIRS[0][:2]], JudgeOptions(deadline=0.0))
    assert (s.complete, s.score, s.verdict) == (False, 0.5, "")
    assert judge.compare(PAIRS[:1])[0].complete


def test_a_deadline_counts_the_wait_behind_another_call(judge):
    first = threading.Thread(
        target=lambda: judge.compare(PAIRS * 4, JudgeOptions(votes=256, deadline=1.5, adaptive=False))
    )
    first.start()
    while judge._runner._current is None:
        time.sleep(0.01)
    (waiting,) = judge.compare(PAIRS[:1], JudgeOptions(deadline=0.05))
    assert first.is_alive()
    assert (waiting.complete, waiting.votes) == (False, ())
    first.join()
    assert judge.compare(PAIRS[:1])[0].complete


def test_a_deadline_beyond_what_threads_can_wait_for_is_none(judge, capfd):
    assert judge.compare(PAIRS[:1], JudgeOptions(deadline=1e12))[0].complete
    assert capfd.readouterr().err == ""


def test_a_deadline_in_the_middle_keeps_what_is_finished(judge):
    """There are more votes than can be cast in the time; those that were cast are whole votes."""
    options = JudgeOptions(votes=256, deadline=0.25, adaptive=False)
    judgements = judge.compare(PAIRS * 4, options)
    assert any(not j.complete for j in judgements)
    votes = [v for j in judgements for v in j.votes]
    assert all(v.tokens_generated <= 24 + ANSWER_TOKENS for v in votes)


@pytest.mark.parametrize(("write", "name"), [(write_tiny_gguf, "x.gguf"), (write_tiny_graph, "x.onnx")])
def test_another_vocabulary_than_the_tokenizers_is_refused(tmp_path, encoder, write, name):
    path = write(tmp_path / name, vocab=300)
    with pytest.raises(BundleError, match=r"300 tokens, fsrm\.json says 260"):
        Judge(path, encoder, threads=1)


def test_a_truncated_model_is_refused(tmp_path, files):
    cut = tmp_path / f"cut{files[0].suffix}"
    cut.write_bytes(files[0].read_bytes()[:5000])
    with pytest.raises(BundleError, match=r"cannot load|cannot be loaded"):
        Judge(cut, files[1])


def test_an_unknown_process_is_refused(files):
    with pytest.raises(InputError, match="'inline' or 'subprocess'"):
        Judge(*files, process="thread")


def test_a_closed_judge_says_so(files):
    judge = Judge(*files, threads=1)
    judge.close()
    judge.close()
    with pytest.raises(JudgeError, match="closed"):
        judge.compare(PAIRS)


@pytest.mark.parametrize("engine", ENGINES)
def test_closing_ends_a_call_that_runs_in_another_thread(tmp_path, engine):
    judge = Judge(*tiny_judge_files(tmp_path, engine, context=20_000, thinking_tokens=15_000), threads=1)
    raised: list[BaseException] = []

    def think():
        try:
            judge.compare(PAIRS * 10, JudgeOptions(votes=64, adaptive=False))
        except JudgeError as error:
            raised.append(error)

    thread = threading.Thread(target=think)
    thread.start()
    while judge._runner._current is None:
        pass
    judge.close()
    thread.join(10)
    assert not thread.is_alive()
    assert "closed" in str(raised[0])


def test_verdict_forms_resolve_to_ids(encoder):
    form = resolve_form(encoder.manifest.templates["pairwise_slow"].verdict, encoder)
    assert form.head == (encoder.manifest.special_tokens["</think>"],)
    assert form.tail == "\n\n"
    assert encoder.decode(list(form.forced)) == "\n\n\\boxed{Assistant "
    point = resolve_form(encoder.manifest.templates["pointwise_slow"].verdict, encoder)
    assert encoder.decode(list(point.forced)) == "\n\n"


def test_a_form_without_a_close_is_refused(encoder):
    verdict = dataclasses.replace(encoder.manifest.templates["pairwise_slow"].verdict, close="")
    with pytest.raises(BundleError, match="empty 'close'"):
        resolve_form(verdict, encoder)


def test_a_close_that_no_token_can_end_is_refused(encoder, tmp_path):
    verdict = dataclasses.replace(encoder.manifest.templates["pairwise_slow"].verdict, close="fin\u00e9")
    assert encoder.encode_text("\u00e9")[-1] in resolve_form(verdict, encoder).wake
    ascii_only = Tokenizer(models.BPE({chr(code): code - 32 for code in range(32, 127)}, []))
    ascii_only.save(str(tmp_path / "tokenizer.json"))
    bare = dataclasses.replace(
        encoder.manifest, templates={"pointwise_fast": Template("{prompt} {response}")}, special_tokens={}, stop_ids=()
    )
    poor = PromptEncoder(tmp_path / "tokenizer.json", bare)
    with pytest.raises(BundleError, match="'close' 'fin\u00e9', but no token of the tokenizer has its last character"):
        resolve_form(verdict, poor)
    assert resolve_form(dataclasses.replace(verdict, close="fine"), poor).wake == (ord("E") - 32, ord("e") - 32)


def test_a_bundle_without_a_template_says_so(tmp_path, files):
    encoder = tiny_encoder(tmp_path)
    encoder.manifest = dataclasses.replace(
        encoder.manifest, templates={"pointwise_fast": encoder.manifest.templates["pointwise_fast"]}
    )
    judge = Judge(files[0], encoder, threads=1)
    with pytest.raises(BundleError, match="no template 'pairwise_slow'"):
        judge.compare(PAIRS)
    judge.close()


def resident_kib():
    return next(
        int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")
    )


@pytest.mark.slow
def test_memory_stays_flat(judge):
    pairs = [(f"Question {i % 7}", "one answer", f"another {i % 11}") for i in range(1000)]
    for pair in pairs[:100]:
        judge.compare([pair], JudgeOptions(votes=2, thinking_tokens=6))
    gc.collect()
    before = resident_kib()
    for pair in pairs:
        judge.compare([pair], JudgeOptions(votes=2, thinking_tokens=6))
    gc.collect()
    assert resident_kib() - before < 4096


@pytest.fixture(scope="module", params=["fast", "slow"])
def embedded(request):
    bundle = Bundle.open(None)
    judge = Judge(bundle.path(request.param), PromptEncoder(bundle.path("tokenizer"), bundle.manifest))
    yield judge
    judge.close()


@pytest.mark.slow
def test_memory_stays_flat_over_a_thousand_comparisons_of_the_embedded_model(embedded):
    """The pairs all differ. What memory the allocator keeps for later stops growing during the first 100 of them."""
    pairs = held_out_pairs(1100)
    options = JudgeOptions(votes=1, thinking_tokens=6)
    for pair in pairs[:100]:
        embedded.compare([pair], options)
    gc.collect()
    before = resident_kib()
    for pair in pairs[100:]:
        embedded.compare([pair], options)
    gc.collect()
    grown = resident_kib() - before
    assert grown < 4096, f"resident memory grew by {grown} KiB"


def held_out_pairs(count):
    """Problems the embedded model was not trained on; the first response is the right one."""
    return [(p.problem.question, p.chosen.text, p.rejected.text) for p in held_out("test", count)]


def test_more_thinking_is_more_often_right(embedded):
    pairs = held_out_pairs(40)
    short, long = (
        [j.winner == 0 for j in embedded.compare(pairs, JudgeOptions(votes=1, thinking_tokens=tokens, temperature=0.0))]
        for tokens in (12, None)
    )
    assert sum(long) >= sum(short) + 6
    assert sum(long) >= 26


@pytest.mark.slow
def test_adaptive_voting_agrees_with_full_voting_on_real_thoughts(embedded):
    pairs = held_out_pairs(200)
    full = embedded.compare(pairs, JudgeOptions(votes=4, adaptive=False))
    quick = embedded.compare(pairs, JudgeOptions(votes=4))
    assert sum(q.winner == f.winner for q, f in zip(quick, full, strict=True)) >= 199
    assert sum(q.tokens_generated for q in quick) < 0.9 * sum(f.tokens_generated for f in full)


@pytest.mark.slow
def test_pairs_judged_together_or_alone_win_alike(embedded):
    pairs = held_out_pairs(30)
    together = embedded.compare(pairs, JudgeOptions(votes=2))
    alone = [embedded.compare([pair], JudgeOptions(votes=2))[0] for pair in pairs]
    assert sum(t.winner == a.winner for t, a in zip(together, alone, strict=True)) >= 29


def test_a_watch_sees_thoughts_grow_and_changes_nothing(judge, monkeypatch):
    monkeypatch.setattr("fsrm_lite.slow.scheduler.WATCH_SECONDS", 0.0)
    seen = []
    plain = judge.compare(PAIRS, JudgeOptions(votes=2, adaptive=False))
    watched = judge.compare(PAIRS, JudgeOptions(votes=2, adaptive=False, watch=lambda now: seen.append(now) or True))
    assert watched == plain
    texts = {}
    for now in seen:
        for thought in now:
            before = texts.setdefault((thought.item, thought.vote), "")
            assert thought.text.startswith(before)
            assert thought.swapped == bool(thought.vote % 2)
            texts[thought.item, thought.vote] = thought.text
    assert set(texts) == {(item, vote) for item in range(3) for vote in range(4)}


def test_a_watch_stops_the_judge_as_a_deadline_does(judge, monkeypatch):
    monkeypatch.setattr("fsrm_lite.slow.scheduler.WATCH_SECONDS", 0.0)
    calls = []
    stopped = judge.compare(PAIRS, JudgeOptions(votes=2, adaptive=False, watch=lambda now: bool(calls.append(0))))
    assert len(calls) == 1
    assert not any(j.complete for j in stopped)
    assert judge.compare(PAIRS[:1], JudgeOptions(votes=1))[0].complete
    texts = judge.generate([[1, 2, 3]], n=3, max_tokens=20, watch=lambda now: False)
    assert [len(group) for group in texts] == [3]
    assert all(g.tokens == 0 for g in texts[0])


def test_a_watch_is_a_function():
    with pytest.raises(InputError, match="watch is 3"):
        JudgeOptions(watch=3)
