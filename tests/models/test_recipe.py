"""The recipe: deterministic data, disjoint splits, right labels, packed batches, a trainer that resumes."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from fsrm_lite import FastSlowRM
from fsrm_lite.bundle.encoder import PromptEncoder
from fsrm_lite.bundle.files import Bundle
from fsrm_lite.models.data import (
    OFF_PATH,
    ON_PATH,
    ROW_TOKENS,
    BatchMaker,
    held_out,
    pair_row,
    template_texts,
    training_manifest,
)
from fsrm_lite.models.plans import ERRORS, LARGEST
from fsrm_lite.models.problems import FAMILIES, ORDERS, make_problem, split_of
from fsrm_lite.models.responses import FORMS, VISIBLE, agrees, right_response, right_texts, thought, wrong_response
from fsrm_lite.models.tokenizer import CONTROL, THINKING, VOCAB_SIZE, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(template_texts(), problems=500).save(str(path))
    return path


def problem(seed: int, split: str = "train"):
    return make_problem(random.Random(seed), split)


def test_there_are_seven_families_and_each_is_drawn():
    drawn = {problem(seed).family for seed in range(200)}
    assert drawn == set(FAMILIES)
    assert len(drawn) == 7


@given(st.integers(0, 2**32), st.sampled_from(("train", "calibration", "test")))
def test_a_problem_is_of_its_split_and_has_one_small_answer(seed, split):
    p = problem(seed, split)
    assert split_of(p.key) == split
    assert not p.answer.isdigit() or 0 <= int(p.answer) <= LARGEST
    assert problem(seed, split) == p


def test_splits_share_no_structure():
    keys = {split: {p.problem.key for p in held_out(split, 300)} for split in ("calibration", "test")}
    train = {problem(seed).key for seed in range(3000)}
    assert not keys["calibration"] & keys["test"]
    assert not train & (keys["calibration"] | keys["test"])


def test_a_larger_held_out_set_begins_with_the_smaller():
    assert held_out("test", 40)[:10] == held_out("test", 10)


@given(st.integers(0, 2**32), st.sampled_from(FORMS))
def test_right_responses_agree_with_the_answer(seed, form):
    p = problem(seed)
    response = right_response(p, random.Random(seed), form)
    assert response.correct
    assert agrees(response.claim, p)
    assert response.claim in response.text
    assert response.text in right_texts(p)


@given(st.integers(0, 2**32), st.sampled_from(FORMS), st.sampled_from((*VISIBLE, *ERRORS, None)))
def test_wrong_responses_do_not(seed, form, error):
    p = problem(seed)
    response = wrong_response(p, random.Random(seed), form, error)
    assert not response.correct
    assert not agrees(response.claim, p)
    assert response.error in VISIBLE + ERRORS
    assert response.claim in response.text


@given(st.integers(0, 2**32))
def test_a_thought_says_yes_to_the_right_claim_alone(seed):
    p, rng = problem(seed), random.Random(seed)
    text = thought(p, (right_response(p, rng).claim, wrong_response(p, rng).claim))
    first, second = text.splitlines()[-2:]
    assert first.startswith("1: ")
    assert first.endswith(" yes")
    assert second.startswith("2: ")
    assert second.endswith(" no")
    assert f"so {p.answer}" in text


def test_a_thought_about_an_ordering_notes_every_comparison_before_it_puts_all_in_order():
    more = {order[0] for order in ORDERS}
    orderings = [p for p in map(problem, range(200)) if p.family == "ordering"]
    assert len(orderings) > 10
    for p in orderings:
        *told, _ = p.question.split(". ")
        noted = []
        for sentence in told:
            first, _, relation, _, second = sentence.split()
            noted.append(f"{first} > {second}" if relation in more else f"{second} > {first}")
        chain = p.plan.derive().terse
        assert thought(p, (p.answer,)).splitlines()[: len(told) + 1] == [*noted, chain]
        assert right_response(p, random.Random(0), "worked").text == f"{chain}. The answer is {p.answer}."


def test_expression_text_means_what_the_plan_computes():
    for seed in range(2000):
        p = problem(seed)
        if p.family in ("balance", "prices", "comparison", "sharing", "expression"):
            expression, value = p.plan.derive().terse.split(" = ")
            assert eval(expression.replace("/", "//")) == int(value) == int(p.answer)


def test_tokenizer_is_small_with_single_digits_and_qwens_control_tokens(tokenizer_path):
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    assert tokenizer.get_vocab_size() <= VOCAB_SIZE
    assert tokenizer.encode("1234").tokens == ["1", "2", "3", "4"]
    added = {t.content: t.special for t in tokenizer.get_added_tokens_decoder().values()}
    assert added == {**dict.fromkeys(CONTROL, True), **dict.fromkeys(THINKING, False)}
    assert tokenizer.decode(tokenizer.encode("Größe 😀\n\t x").ids) == "Größe 😀\n\t x"


def test_batches_are_deterministic_and_packed_without_mixing(tokenizer_path):
    manifest = training_manifest(Tokenizer.from_file(str(tokenizer_path)))
    batch = BatchMaker(tokenizer_path, manifest, seed=3, rows=6).batch(11)
    again = BatchMaker(tokenizer_path, manifest, seed=3, rows=6).batch(11)
    for name in type(batch).__slots__:
        np.testing.assert_array_equal(getattr(batch, name), getattr(again, name))
    assert batch.ids.shape == (6, ROW_TOKENS)
    yes, no = (label.id for label in manifest.labels)
    assert batch.labels.tolist() == [yes, no] * (len(batch.labels) // 2)
    start = manifest.special_tokens["<|im_start|>"]
    for row in range(6):
        for segment in set(batch.segments[row].tolist()) - {0}:
            inside = batch.segments[row] == segment
            assert batch.ids[row][inside][0] == start
            assert batch.positions[row][inside].tolist() == list(range(inside.sum()))
            assert batch.weights[row][inside][-1] == 0.0  # an example's last token does not predict the next example


def test_process_labels_say_from_which_token_on_a_response_is_wrong(tokenizer_path):
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    maker = BatchMaker(tokenizer_path, training_manifest(tokenizer), seed=3, rows=6)
    begun, worked = 0, 0
    for seed in range(80):
        p, rng = problem(seed), random.Random(seed)
        known = right_texts(p)
        for response in (right_response(p, rng), wrong_response(p, rng)):
            example = maker._fast(p, response)
            assert len(example.ids) == len(example.weights) == len(example.on_path)
            places = [i for i, sign in enumerate(example.on_path) if sign]
            assert places == list(range(places[0], places[-1] + 1))
            assert tokenizer.decode(example.ids[places[0] : places[-1] + 1]).strip() in response.text
            signs = [example.on_path[i] for i in places]
            if response.correct:
                assert set(signs) == {ON_PATH}
            elif OFF_PATH in signs:  # a response that only lacks its answer is right as far as it goes
                first = places[signs.index(OFF_PATH)]
                assert set(signs[signs.index(OFF_PATH) :]) == {OFF_PATH}
                prompts = [maker._encoder.pointwise_fast(p.question, text) for text in known]
                # A number can begin with a token of the space before it, which a name does not have.
                assert first == places[0] or any(prompt[:first] == example.ids[:first] for prompt in prompts)
                assert not any(prompt[: first + 1] == example.ids[: first + 1] for prompt in prompts)
            else:
                prompts = [maker._encoder.pointwise_fast(p.question, text) for text in known]
                assert any(prompt[: places[-1] + 1] == example.ids[: places[-1] + 1] for prompt in prompts)
            if not response.correct and response.form == "worked" and response.error not in ("offtopic", "missing"):
                begun, worked = begun + (ON_PATH in signs), worked + 1
    assert worked >= 10
    assert begun > 0.8 * worked  # most workings begin well


def test_verdict_stands_behind_the_trained_form(tokenizer_path):
    manifest = training_manifest(Tokenizer.from_file(str(tokenizer_path)))
    encoder = PromptEncoder(tokenizer_path, manifest)
    verdict = manifest.templates["pairwise_slow"].verdict
    whole = (
        Tokenizer.from_file(str(tokenizer_path))
        .encode("</think>\n\n\\boxed{Assistant 2}", add_special_tokens=False)
        .ids
    )
    assert [
        *encoder.encode_template(verdict.close + verdict.prefix),
        verdict.choice_ids[1],
        *encoder.encode_text(verdict.suffix),
    ] == whole


def test_rows_are_json_with_difficulty():
    row = pair_row(held_out("test", 1)[0])
    assert json.loads(json.dumps(row)) == row
    assert {"prompt", "chosen", "rejected", "family", "steps", "form", "error"} <= set(row)


@pytest.mark.slow
def test_interrupted_training_goes_on_to_the_same_weights(tmp_path):
    torch = pytest.importorskip("torch")
    from fsrm_lite.models import train

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    def run(folder: str, stops: list[int]) -> dict:
        for stop in stops:
            trainer = train.Trainer(tmp_path / folder, train.Settings(seed=1, steps=4), "cpu", compiled=False)
            for index in range(trainer.step, stop):
                trainer.update(BatchMaker(trainer.tokenizer_path, trainer.manifest, 1, rows=2).batch(index))
            trainer.save()
        return trainer.model.state_dict()

    whole, halves = run("whole", [4]), run("halves", [2, 4])
    torch.use_deterministic_algorithms(False)
    assert all(torch.equal(whole[name], halves[name]) for name in whole)


@pytest.mark.slow
def test_a_bundle_gets_its_gate_and_figures_anew_and_keeps_its_files(tmp_path):
    pytest.importorskip("llama_cpp")
    release = pytest.importorskip("fsrm_lite.models.release")
    bundle = tmp_path / "bundle"
    shutil.copytree(Bundle.open().root, bundle)
    before = Bundle.open(bundle).manifest
    options = ["-o", str(bundle), "--threads", "1", "--calibration-pairs", "60", "--test-pairs", "24"]
    options += ["--lists", "80"]
    done = CliRunner().invoke(release.main, options, catch_exceptions=False)
    after = Bundle.open(bundle)
    after.check()
    assert done.exit_code == 0
    assert after.manifest.files == before.files
    assert after.manifest.card["evaluation"]["pairs"] == 24
    # The recorded scores may be from another processor; this machine's own are the ones to find again, to the bit.
    golden = [(entry["prompt"], entry["response"]) for entry in before.card["golden"]]
    here = FastSlowRM.from_pretrained(Bundle.open().root, threads=1).score_many(golden, judge="never")
    found = [(entry["prompt"], entry["response"], entry["score"]) for entry in after.manifest.card["golden"]]
    assert found == [(*pair, score.score) for pair, score in zip(golden, here, strict=True)]
    assert "on 24 held-out test pairs" in (bundle / "README.md").read_text()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_learning_rate_stays_within_its_schedule(step):
    train = pytest.importorskip("fsrm_lite.models.train")
    rate = train.learning_rate(step, train.Settings(steps=1000, learning_rate=2.0))
    assert 0.0 <= rate <= 2.0
    assert step < 1000 or rate == 0.0


def test_learning_rate_falls_to_zero_twice_with_a_restart():
    train = pytest.importorskip("fsrm_lite.models.train")
    rates = [
        train.learning_rate(step, train.Settings(steps=1000, learning_rate=2.0, restart=500))
        for step in (300, 499, 500, 750, 1000)
    ]
    assert rates == pytest.approx([0.8, 0.004, 1.0, 0.5, 0.0])


def test_a_run_that_is_cut_short_of_its_restart_ends_at_a_rate_of_zero():
    train = pytest.importorskip("fsrm_lite.models.train")
    assert train.learning_rate(400, train.Settings(steps=400, restart=500)) == 0.0
