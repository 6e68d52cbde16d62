"""The fast path: every text is turned into ids once, whoever asks."""

import json

import pytest
from click.testing import CliRunner

from fsrm_lite import FastSlowRM
from fsrm_lite.bundle.encoder import PromptEncoder
from fsrm_lite.cli import main
from fsrm_lite.errors import ContextOverflowError, InputError
from fsrm_lite.fast.path import EncodedResponse, FastPath

QUESTION = "What is 2 + 3?"


@pytest.fixture
def rendered(monkeypatch):
    """The responses that were rendered for the fast path, in order."""
    seen = []
    render = PromptEncoder.pointwise_fast

    def counting(self, prompt, response):
        seen.append(response)
        return render(self, prompt, response)

    monkeypatch.setattr(PromptEncoder, "pointwise_fast", counting)
    return seen


def test_a_call_renders_each_response_once(rm, rendered):
    rm.score_many([(QUESTION, "5"), (QUESTION, "6")], judge="never")
    rm.compare(QUESTION, "7", "8", judge="never")
    rm.best_of_n(QUESTION, ["9", "10", "11"], strategy="knockout", judge="never")
    assert rendered == ["5", "6", "7", "8", "9", "10", "11"]


@pytest.mark.parametrize(
    ("command", "row", "expected"),
    [
        ("score", {"prompt": QUESTION, "response": "5"}, ["5"]),
        ("compare", {"prompt": QUESTION, "chosen": "5", "rejected": "6"}, ["5", "6"]),
        ("rank", {"prompt": QUESTION, "responses": ["5", "6"]}, ["5", "6"]),
        ("best-of-n", {"prompt": QUESTION, "responses": ["5", "", "6"]}, ["5", "6"]),
    ],
)
def test_the_shell_renders_each_response_once(rendered, command, row, expected):
    options = [command, "-", "--judge", "never", "--threads", "1"]
    done = CliRunner().invoke(main, options, input=json.dumps(row) + "\n", catch_exceptions=False)
    assert done.exit_code == 0
    assert rendered == expected


def test_an_encoded_response_stands_for_its_text(rm, rendered):
    first, second = rm.encode(QUESTION, "5"), rm.encode(QUESTION, "6")
    assert rm.score(QUESTION, first, judge="never") == rm.score(QUESTION, "5", judge="never")
    assert rm.compare(QUESTION, first, second) == rm.compare(QUESTION, "5", "6")
    assert rm.rank(QUESTION, [second, first], judge="never") == rm.rank(QUESTION, ["6", "5"], judge="never")
    assert rm.best_of_n(QUESTION, [second, first]) == rm.best_of_n(QUESTION, ["6", "5"])
    assert rendered == [*"56", *"5", *"56", *"65", *"65"]


def test_an_encoded_response_is_refused_for_another_prompt_or_model(rm):
    encoded = rm.encode(QUESTION, "5")
    for call in (
        lambda: rm.score("What is 50 - 8?", encoded),
        lambda: rm.compare("What is 50 - 8?", "42", encoded),
        lambda: rm.rank("What is 50 - 8?", ["42", encoded]),
        lambda: rm.best_of_n("What is 50 - 8?", ["42", encoded]),
    ):
        with pytest.raises(InputError, match=r"item [01]: the response was encoded for another prompt"):
            call()
    with pytest.raises(InputError, match="the prompt is null"):
        rm.score(None, encoded)
    with (
        FastSlowRM.from_pretrained(threads=1) as other,
        pytest.raises(InputError, match="item 0: the response was encoded by another model"),
    ):
        other.score(QUESTION, encoded)
    messages = [{"role": "user", "content": QUESTION}]
    assert rm.score(messages, encoded, judge="never") == rm.score(QUESTION, "5", judge="never")
    assert len({encoded, rm.encode(messages, "5")}) == 1


def test_a_long_response_is_cut_where_that_was_asked_for(rm):
    long = "2 + 3 = 5. " * 200
    with pytest.raises(ContextOverflowError):
        rm.encode(QUESTION, long)
    cutting = FastPath(rm.bundle, rm.encoder, threads=1, truncate=True)
    try:
        encoded = cutting.encode(QUESTION, long)
        assert isinstance(encoded, EncodedResponse)
        assert long.startswith(encoded.text)
        assert len(encoded.ids) <= rm.bundle.manifest.limits.context
        assert list(encoded.ids) == rm.encoder.pointwise_fast(QUESTION, encoded.text)
    finally:
        cutting.close()


def test_a_match_counts_only_what_the_judge_reads(rm):
    chosen = rm.best_of_n(QUESTION, ["5", "6", "7"], strategy="knockout", judge="always", seed=3)
    fast = sum(score.tokens_read for score in chosen.scores)
    judged = sum(match.tokens_read for match in chosen.comparisons)
    assert chosen.tokens_read == fast + judged
    alone = rm.compare(QUESTION, "5", "6", judge="never")
    assert alone.tokens_read == sum(score.tokens_read for score in alone.scores)
    unjudged = rm.best_of_n(QUESTION, ["5", "6"], strategy="knockout", judge="never")
    assert [match.tokens_read for match in unjudged.comparisons] == [0]


def test_an_unusable_text_names_its_item(rm):
    with pytest.raises(InputError, match="item 1: the response is empty"):
        rm.score_many([(QUESTION, "5"), (QUESTION, " ")])
