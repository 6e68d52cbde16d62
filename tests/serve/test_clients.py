"""Other people's clients, used as their documentation shows, against a running server."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.serving import serving

from fsrm_lite import SolveReasoner

QUESTION = "Mia has 7 pens. Mia finds 8 more. How many pens does Mia have now?"
KEY = "test-key"


@pytest.fixture(scope="module")
def served(rm):
    with serving(rm, reasoner=SolveReasoner(rm), key=KEY) as running:
        yield running


@pytest.fixture(scope="module")
def openai_client(served):
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def test_openai_decisions(openai_client):
    found = openai_client.decisions.create(
        model="fsrm-tiny",
        input=QUESTION,
        questions=[
            {"type": "predicate", "name": "odd", "instructions": "Is the number odd?"},
            {
                "type": "choice",
                "instructions": "Which is better?",
                "choices": [{"value": "15 pens"}, {"value": "9 cups", "description": "no pens"}, {"value": True}],
            },
            {"type": "score", "name": "size", "instructions": "How many?", "levels": [{"label": "5"}, {"label": "15"}]},
        ],
    )
    predicate, choice, score = found.answers
    assert (predicate.type, predicate.name) == ("predicate", "odd")
    assert 0 <= predicate.probability <= 1
    assert (choice.choice, choice.name) == ("15 pens", None)
    assert [p.value for p in choice.probabilities] == ["15 pens", "9 cups", True]
    assert sum(p.probability for p in choice.probabilities) == pytest.approx(1)
    assert score.score == pytest.approx(sum(p.value * p.probability for p in score.probabilities))
    assert found.usage.total_tokens == found.usage.input_tokens + found.usage.output_tokens
    assert choice.x_route in ("fast", "slow")  # the client keeps the fields that it does not know


def test_openai_decisions_errors_are_typed(openai_client):
    import openai

    with pytest.raises(openai.BadRequestError) as caught:
        openai_client.decisions.create(
            model="fsrm-tiny",
            input="x",
            questions=[{"type": "choice", "instructions": "q", "choices": [{"value": "a"}, {"value": "a"}]}],
        )
    assert caught.value.param == "questions[0].choices[1].value"
    with pytest.raises(openai.NotFoundError):
        openai_client.decisions.create(model="gpt-9", input="x", questions=[])
    with pytest.raises(openai.AuthenticationError):
        openai_client.with_options(api_key="wrong").models.list()


def test_openai_chat_and_its_stream(openai_client):
    messages = [{"role": "user", "content": QUESTION}]
    whole = openai_client.chat.completions.create(model="fsrm-tiny", messages=messages, temperature=0)
    assert "15" in whole.choices[0].message.content
    assert whole.choices[0].finish_reason == "stop"
    stream = openai_client.chat.completions.create(
        model="fsrm-tiny", messages=messages, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    short = openai_client.chat.completions.create(model="fsrm-tiny", messages=messages, max_completion_tokens=2)
    assert short.choices[0].finish_reason == "length"


def test_openai_lists_the_models(openai_client):
    assert [model.id for model in openai_client.models.list()] == ["fsrm-tiny"]


def test_cohere_rerank(served):
    cohere = pytest.importorskip("cohere")
    client = cohere.ClientV2(api_key=KEY, base_url=served.url)
    found = client.rerank(
        model="fsrm-tiny", query=QUESTION, documents=["9 cups", "15 pens", "", "cups"], top_n=2, max_tokens_per_doc=64
    )
    assert found.results[0].index == 1
    assert len(found.results) == 2
    assert 1 >= found.results[0].relevance_score >= found.results[1].relevance_score >= 0


def test_requests_as_vllm_jina_and_tei_show_them(served):
    requests = pytest.importorskip("requests")
    session = requests.Session()
    session.trust_env = False
    session.headers["Authorization"] = f"Bearer {KEY}"
    vllm = session.post(f"{served.url}/score", json={"model": "fsrm-tiny", "text_1": QUESTION, "text_2": ["15 pens"]})
    assert vllm.json()["data"][0]["score"] > 0.5
    jina = session.post(
        f"{served.url}/v1/rerank",
        json={"model": "fsrm-tiny", "query": QUESTION, "documents": ["9 cups", "15 pens"], "return_documents": True},
    )
    assert jina.json()["results"][0]["document"]["text"] == "15 pens"
    tei = session.post(f"{served.url}/rerank", json={"query": QUESTION, "texts": ["9 cups", "15 pens"]})
    assert tei.json()[0]["index"] == 1
    talk = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "15 pens"}]
    pooled = session.post(f"{served.url}/pooling", json={"model": "fsrm-tiny", "messages": talk})
    assert pooled.json()["data"][0]["data"][0] > 0


def test_a_ranking_in_the_shape_of_sentence_transformers(served, rm):
    """What ``CrossEncoder.rank`` returns, from the server's reply, as its users write it."""
    requests = pytest.importorskip("requests")
    documents = ["9 cups", "15 pens", "16 pens"]
    reply = requests.post(
        f"{served.url}/rerank",
        json={"query": QUESTION, "documents": documents},
        headers={"Authorization": f"Bearer {KEY}"},
        timeout=60,
        proxies={"http": ""},
    ).json()
    ranked = [{"corpus_id": r["index"], "score": r["relevance_score"]} for r in reply["results"]]
    wanted = rm.rank(QUESTION, documents, judge="never")
    assert [r["corpus_id"] for r in ranked] == [r["corpus_id"] for r in wanted]
    assert [r["score"] for r in ranked] == [pytest.approx(r["score"], abs=5e-3) for r in wanted]


@pytest.mark.slow
@pytest.mark.parametrize("judge", ["never", "auto"])
def test_the_conformance_suite_of_jevcompat_passes(rm, judge, tmp_path):
    """https://pypi.org/project/jevcompat: every MUST, and every SHOULD, with a key and with thinking."""
    pytest.importorskip("jevcompat")
    program = shutil.which("jevcompat", path=str(Path(sys.executable).parent))
    with serving(rm, key=KEY, judge=judge) as client:
        done = subprocess.run(
            [program, "test", client.url, "--key", KEY, "--json", str(tmp_path / "report.json")],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["summary"]["conformant"] is True
    assert report["summary"]["MUST"]["failed"] == report["summary"]["SHOULD"]["failed"] == 0
    assert report["summary"]["MUST"]["passed"] >= 32
    assert report["summary"]["untested_musts"] == []
