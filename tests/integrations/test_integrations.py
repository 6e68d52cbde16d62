"""Adapters: TRL's shapes (and its real trainer), CrossEncoder, its_hub, lm-eval, HTTP."""

import asyncio
import importlib.util
import json
import pickle
import sys
import threading
import types
import urllib.error
import urllib.request

import numpy as np
import pytest
from helpers.loops import FakeRM, load_fake

from fsrm_lite.errors import InputError, ReasonerError
from fsrm_lite.integrations.cross_encoder import CrossEncoderRM
from fsrm_lite.integrations.loading import LazyModel, text_of
from fsrm_lite.integrations.scaling import BestOfFilter, OutcomeRewardModel
from fsrm_lite.integrations.trl import PairwiseJudge, RewardFunction
from fsrm_lite.loops.reasoners import CallableReasoner, EndpointReasoner, Sampling, Task
from fsrm_lite.serve import http


@pytest.fixture
def fake_loading(monkeypatch):
    """``FastSlowRM.from_pretrained`` gives a stand-in, and records what it was asked for."""
    asked = []
    module = types.ModuleType("fsrm_lite.scorer")
    module.FastSlowRM = types.SimpleNamespace(
        from_pretrained=lambda source=None, **options: asked.append((source, options)) or load_fake(source)
    )
    monkeypatch.setitem(sys.modules, "fsrm_lite.scorer", module)
    return asked


# --- loading ---


def test_lazy_model_loads_once_and_only_when_needed(fake_loading):
    lazy = LazyModel("some/folder", threads=2)
    assert fake_loading == []
    assert lazy.model is lazy.model
    assert fake_loading == [("some/folder", {"threads": 2})]


def test_lazy_model_pickles_without_the_model(fake_loading):
    copy = pickle.loads(pickle.dumps(LazyModel(FakeRM())))
    assert copy.model.bundle.root == "/bundle"
    assert fake_loading == [("/bundle", {})]


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("4", "4"),
        ([{"role": "assistant", "content": "4"}], "4"),
        ({"role": "assistant", "content": [{"type": "text", "text": "4"}, {"type": "image"}]}, "4"),
        ([{"content": "a"}, {"content": "b"}], "a\nb"),
        ([], ""),
    ],
)
def test_text_of_every_form(completion, text):
    assert text_of(completion) == text


@pytest.mark.parametrize("bad", [None, 4, [4], {"content": None}])
def test_text_of_refuses_what_is_no_text(bad):
    with pytest.raises(InputError, match="expected a string"):
        text_of(bad)


# --- TRL ---


def test_reward_function_strings_and_messages_agree():
    reward = RewardFunction(FakeRM())
    prompts = ["q", "q"]
    messages = [[{"role": "assistant", "content": "+"}], [{"role": "assistant", "content": "++"}]]
    assert reward.__name__ == "fsrm_reward"
    assert reward(prompts=prompts, completions=["+", "++"]) == reward(
        prompts=[[{"role": "user", "content": "q"}]] * 2, completions=messages
    )
    assert reward(prompts=prompts, completions=["+", "++"], answer=["1", "2"], trainer_state=None)[0] == 0.5


def test_reward_function_is_fast_by_default_and_takes_a_policy():
    rm = FakeRM()
    RewardFunction(rm)(prompts=["q"], completions=["+"])
    RewardFunction(rm, judge="auto")(prompts=["q"], completions=["+"])
    assert rm.calls == [("score", 1, "never"), ("score", 1, "auto")]


def test_reward_function_empty_completion_is_worth_least_and_unscorable_is_none():
    completions = ["+", "", "x" * 300, " "]
    assert RewardFunction(FakeRM())(prompts=["q"] * 4, completions=completions) == [0.5, 0.0, None, 0.0]
    assert RewardFunction(FakeRM(), scale="logit")(prompts=["q"] * 4, completions=completions) == [
        0.0,
        -50.0,
        None,
        -50.0,
    ]


def test_reward_function_no_completions():
    assert RewardFunction(FakeRM())(prompts=[], completions=[]) == []


def test_reward_function_pickles(fake_loading):
    reward = pickle.loads(pickle.dumps(RewardFunction("org/name", judge="auto", scale="logit", name="mine", threads=1)))
    assert (reward.__name__, reward(prompts=["q"], completions=["++"])) == ("mine", [1.0])
    assert fake_loading == [("org/name", {"threads": 1})]


def test_reward_function_bad_arguments():
    with pytest.raises(InputError, match="1 prompts and 2 completions"):
        RewardFunction(FakeRM())(prompts=["q"], completions=["a", "b"])
    with pytest.raises(InputError, match="scale is 'rank'"):
        RewardFunction(scale="rank")


def test_pairwise_judge_shape():
    judge = PairwiseJudge(FakeRM())
    assert judge.judge(["q", "q", "q"], [["+", ""], ["", "+"], ["+", "++"]], shuffle_order=False) == [-1, -1, 1]
    assert judge.judge([], []) == []
    with pytest.raises(InputError, match="exactly two"):
        judge.judge(["q"], [["a"]])


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs pip install 'fsrm-lite[trl]'")
@pytest.mark.parametrize("conversational", [False, True])
def test_reward_function_inside_trls_grpo_trainer(tmp_path, conversational):
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model, tokenizer = tiny_policy(torch, transformers)
    prompts = ["2 + 2 =", "3 + 4 =", "5 - 1 =", "6 + 6 ="]
    rows = [{"prompt": [{"role": "user", "content": p}] if conversational else p, "answer": "4"} for p in prompts]
    rm = FakeRM()
    rm.score_many = lambda items, judge: [FakeRM._score(response[:50]) for _, response in items]
    config = trl.GRPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=8,
        max_steps=2,
        report_to=[],
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = trl.GRPOTrainer(
        model=model,
        reward_funcs=RewardFunction(rm),
        args=config,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    logged = [row for row in trainer.state.log_history if "rewards/fsrm_reward/mean" in row]
    assert len(logged) == 2
    assert all(0.0 <= row["rewards/fsrm_reward/mean"] <= 1.0 for row in logged)


def tiny_policy(torch, transformers):
    """A causal model with a byte tokenizer, both built here: nothing is downloaded."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )
    fast.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
        eos_token_id=1,
    )
    return transformers.LlamaForCausalLM(config), fast


# --- CrossEncoder ---


def test_cross_encoder_predict_one_or_many():
    encoder = CrossEncoderRM(FakeRM())
    many = encoder.predict([("q", "+"), ["q", "++"]], batch_size=32, show_progress_bar=False)
    assert many.dtype == np.float32
    assert many.tolist() == pytest.approx([0.5, 0.7310586])
    assert encoder.predict(("q", "+")).shape == ()
    assert float(encoder.predict(["q", "++"])) == pytest.approx(0.7310586)
    assert encoder.predict([]).shape == (0,)


def test_cross_encoder_two_pairs_are_not_one_pair():
    assert CrossEncoderRM(FakeRM()).predict([("a", "+"), ("b", "++")]).shape == (2,)


def test_cross_encoder_rank():
    encoder = CrossEncoderRM(FakeRM())
    ranked = encoder.rank("q", ["+", "+++", "+", "++"], top_k=3, return_documents=True)
    assert [(r["corpus_id"], r["text"]) for r in ranked] == [(1, "+++"), (3, "++"), (0, "+")]
    assert "text" not in encoder.rank("q", ["+"])[0]
    assert encoder.rank("q", []) == []


# --- its_hub and lm-eval ---


def conversation(answer):
    return [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]


def test_outcome_reward_model_keeps_the_form_of_its_input():
    model = OutcomeRewardModel(FakeRM())
    assert model.score(conversation("+")) == 0.5
    assert model.score([conversation("+"), conversation("++")], max_input_tokens=10) == pytest.approx([0.5, 0.7310586])
    assert asyncio.run(model.ascore(conversation("+"))) == 0.5
    assert model.score([]) == []


def test_outcome_reward_model_needs_an_answer():
    with pytest.raises(InputError, match="end with an assistant message"):
        OutcomeRewardModel(FakeRM()).score([{"role": "user", "content": "q"}])


def test_best_of_filter_keeps_one_response_per_document():
    best = BestOfFilter(FakeRM(), prompt=lambda doc: doc["question"], strategy="fast")
    assert best(resps=[["+", "++"], ["+++", "+"]], docs=[{"question": "a"}, {"question": "b"}]) == ["++", "+++"]


# --- HTTP ---


def test_score_one_to_many_and_pairs():
    one = http.score(FakeRM(), {"model": "m", "text_1": "q", "text_2": ["+", "++"]})
    assert [(d["index"], d["object"], round(d["score"], 3)) for d in one["data"]] == [
        (0, "score", 0.5),
        (1, "score", 0.731),
    ]
    assert (one["object"], one["model"], one["usage"]["prompt_tokens"]) == ("list", "m", 20)
    pairs = http.score(FakeRM(), {"queries": ["a", "b"], "documents": ["+", "+"]})
    assert [d["score"] for d in pairs["data"]] == [0.5, 0.5]
    assert pairs["model"] == "fake"


def test_rerank_is_sorted_and_cut():
    reply = http.rerank(FakeRM(), {"query": "q", "documents": ["+", {"text": "+++"}, "++"], "top_n": 2})
    assert [(r["index"], r["document"]["text"]) for r in reply["results"]] == [(1, "+++"), (2, "++")]
    assert reply["usage"]["total_tokens"] == 30
    assert len(http.rerank(FakeRM(), {"query": "q", "documents": ["+", "++"], "top_n": 0})["results"]) == 2


def test_tei_rerank_raw_scores_and_texts():
    assert http.tei_rerank(
        FakeRM(), {"query": "q", "texts": ["+", "+++"], "raw_scores": True, "return_text": True}
    ) == [
        {"index": 1, "score": 2.0, "text": "+++"},
        {"index": 0, "score": 0.0, "text": "+"},
    ]
    assert http.tei_rerank(FakeRM(), {"query": "q", "texts": ["+"]}) == [{"index": 0, "score": 0.5}]


@pytest.mark.parametrize(
    ("shape", "request_", "match"),
    [
        (http.score, {"text_2": "x"}, "text_1 is missing"),
        (http.score, {"text_1": ["a", "b"], "text_2": ["c"]}, "2 texts and text_2 has 1"),
        (http.score, {"text_1": "a", "text_2": 3}, "text_2 is a int"),
        (http.rerank, {"query": 3, "documents": []}, "query is a int"),
        (http.rerank, {"query": "q", "documents": ["a", None]}, "not text"),
        (http.rerank, {"query": "q", "documents": ["a"], "top_n": -1}, "top_n is -1"),
        (http.tei_rerank, {"query": "q"}, "texts is missing"),
    ],
)
def test_shapes_name_what_is_wrong(shape, request_, match):
    with pytest.raises(InputError, match=match):
        shape(FakeRM(), request_)


@pytest.fixture
def server():
    answers = iter(range(100))
    reasoner = CallableReasoner(lambda question: f"{question} {next(answers)}" if question != "fail" else 1 / 0)
    running = http.make_server(FakeRM(), reasoner=reasoner)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()
    thread.join()


def post(url, body):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=20) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_server_answers_every_shape(server):
    assert post(f"{server}/v1/score", {"text_1": "q", "text_2": "+"})[1]["data"][0]["score"] == 0.5
    assert post(f"{server}/rerank", {"query": "q", "documents": ["+", "++"]})[1]["results"][0]["index"] == 1
    assert post(f"{server}/rerank", {"query": "q", "texts": ["+", "++"]})[1][0]["index"] == 1
    assert urllib.request.urlopen(f"{server}/health", timeout=20).status == 200


@pytest.mark.parametrize(
    ("path", "body", "status", "match"),
    [
        ("/score", b"{", 400, "not JSON"),
        ("/score", [1], 400, "expected an object"),
        ("/score", {"text_1": "q", "text_2": ""}, 400, "empty"),
        ("/nowhere", {}, 404, "no such address"),
        ("/v1/chat/completions", {"messages": []}, 400, "no message of the user"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "q"}], "n": "two"},
            400,
            "expected a whole number",
        ),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "fail"}]}, 500, "ZeroDivisionError"),
    ],
)
def test_server_errors_are_json_with_a_reason(server, path, body, status, match):
    code, reply = post(server + path, body)
    assert code == status
    assert match in reply["error"]["message"]


def test_server_and_endpoint_reasoner_meet(server):
    reasoner = EndpointReasoner(f"{server}/v1", timeout_s=20)
    groups = reasoner.propose([Task("a"), Task("b", ("b 0",))], Sampling(n=2))
    assert [[p.text for p in group] for group in groups] == [["a 0", "a 1"], ["b 2", "b 3"]]
    assert groups[0][0].tokens_generated == 2


def test_endpoint_reasoner_gives_up_on_a_server_error(server):
    with pytest.raises(ReasonerError, match="failed after 2 tries"):
        EndpointReasoner(f"{server}/v1", timeout_s=20, retries=1).propose([Task("fail")], Sampling())
