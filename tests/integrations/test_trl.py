"""TRL's shapes, and its real trainer."""

import importlib.util
import pickle

import pytest
from helpers.loops import FakeRM

from fsrm_lite.errors import InputError, MisuseError
from fsrm_lite.integrations.trl import PairwiseJudge, RewardFunction


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


def test_one_unreadable_completion_costs_the_others_nothing():
    silent = {"role": "assistant", "content": None, "tool_calls": [{"type": "function"}]}
    completions = ["+", 3, [silent, {"role": "assistant", "content": "+"}], [silent], [{"content": 4}]]
    assert RewardFunction(FakeRM())(prompts=["q"] * 5, completions=completions) == [0.5, None, 0.5, 0.0, None]
    assert PairwiseJudge(FakeRM()).judge(["q", "q"], [["+", 3], ["+", "++"]]) == [-1, 1]


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


@pytest.mark.parametrize("kind", [list, iter, lambda x: pytest.importorskip("pandas").Series(x, index=[4, 9, 0])])
def test_rewards_of_columns_and_generators(kind):
    assert RewardFunction(FakeRM())(prompts=kind(["q"] * 3), completions=kind(["+", "", "++"])) == pytest.approx(
        [0.5, 0.0, 0.7310586]
    )


@pytest.mark.parametrize("bad", [3, {"role": "assistant", "content": 7}, [{"role": "assistant", "content": 7}]])
def test_a_completion_without_text_costs_only_itself(bad):
    """Kind: case 04 of the public complaints; the conversion runs within what one bad item may cost."""
    assert RewardFunction(FakeRM())(prompts=["q"] * 3, completions=["+", bad, "++"])[::2] == pytest.approx(
        [0.5, 0.7310586]
    )
    assert PairwiseJudge(FakeRM()).judge(["q", "q"], [["+", bad], ["+", "++"]]) == [-1, 1]


def test_misuse_and_bad_options_are_no_bad_items():
    """Kind: case 02 of the public complaints; never a list of None."""
    for kind in (RewardFunction, PairwiseJudge):
        with pytest.raises(InputError, match="judge is 'perhaps'"):
            kind(judge="perhaps")
    with pytest.raises(InputError, match="threads is 0"):
        RewardFunction(threads=0)(prompts=["q"], completions=["a"])
    closed = RewardFunction()
    closed.model.close()
    with pytest.raises(MisuseError, match="closed"):
        closed(prompts=["q"], completions=["a"])
    judge = PairwiseJudge(judge="always")
    judge.model.close()
    with pytest.raises(MisuseError, match="closed"):
        judge.judge(["q"], [["a", "b"]])


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
