"""Every recipe, from a folder with real tokenizer and architecture to results, with no JSON written."""

import json
import random
import re
from dataclasses import replace
from functools import cache

import pytest
from click.testing import CliRunner
from helpers import DATA
from helpers.bundle import plain_manifest
from helpers.cli import call
from helpers.public import (
    VOCABULARY,
    needs_tokenizers,
    public_checkpoint,
    tokenizer_folder,
    transformers_tokenizer,
    vocabulary_of,
)

from fsrm_lite import FastSlowRM
from fsrm_lite.bundle.conversation import prompt_text
from fsrm_lite.bundle.encoder import PromptEncoder
from fsrm_lite.bundle.files import Bundle
from fsrm_lite.bundle.manifest import Template
from fsrm_lite.cli.exporting import export, recipes
from fsrm_lite.errors import ExportError, InputError, ToleranceError, UnsupportedCheckpointError
from fsrm_lite.export.checkpoints.chat_template import (
    ChatTemplate,
    find_role_forms,
    random_conversations,
    read_chat_template,
)
from fsrm_lite.export.checkpoints.checkpoint import Architecture
from fsrm_lite.export.checkpoints.spec import load_spec, resolve_spec
from fsrm_lite.export.checkpoints.traps import doubts, refuse_foreign_tokens
from fsrm_lite.export.checkpoints.vocabulary import has_chat_template
from fsrm_lite.export.hub import checkpoint_name
from fsrm_lite.export.pipeline import export_checkpoint
from fsrm_lite.export.plan import choose_spec, open_source
from fsrm_lite.export.recipes import Trace, all_recipes, find_recipe, fragment, recognise
from fsrm_lite.measure.benchmark_formats import load_benchmark
from fsrm_lite.measure.evaluation import EvalOptions, as_asked, evaluate

for module in ("torch", "transformers", "onnx", "gguf", "llama_cpp"):
    pytest.importorskip(module)

LOOSE = {"label_mass": 0, "delta_score": 1, "delta_margin": 9, "decisions": 0, "routes": 0, "verdicts": 0}
ROWS = [
    {"prompt": f"How much is {i} and {i + 3}?", "responses": [str(2 * i + 3), f"It is {i}.", "I do not know."]}
    for i in range(3)
]
FAMILIES = {  # recipe: name of the folder, architecture, tokenizer, scalar head
    "qwen3-reranker": ("Qwen3-Reranker-0.6B", "qwen3", "qwen3", False),
    "skywork-reward-v2": ("Skywork-Reward-V2-Llama-3.2-1B", "llama", "llama3_1", True),
    "scalar": ("my-reward", "qwen3", "qwen3", True),
    "rrm": ("RRM-7B", "qwen2", "qwen3", False),
    "rm-r1": ("RM-R1-DeepSeek-Distilled-Qwen-7B", "qwen2", "qwen3", False),
    "rm-r1-instruct": ("RM-R1-Qwen2.5-Instruct-7B", "qwen2", "qwen3", False),
    "gram": ("GRAM-Qwen3-1.7B-RewardModel", "qwen3", "qwen3", False),
    "gram-rr": ("GRAM-RR-LLaMA-3.2-3B-RewardModel", "llama", "llama3_1", False),
    "prometheus": ("M-Prometheus-3B", "qwen2", "qwen3", False),
    "yes-no": ("my-chat-model", "llama", "llama3_1", False),
    "pairwise": ("my-chat-model", "qwen3", "qwen3", False),
}


def architecture(tokenizer, *, scalar=False):
    return Architecture(
        model_type="qwen3",
        hidden_size=32,
        layers=2,
        heads=2,
        kv_heads=1,
        head_dim=16,
        intermediate_size=64,
        vocab_size=VOCABULARY[tokenizer],
        rms_eps=1e-6,
        rope_theta=1e6,
        rope_scaling=None,
        tied=False,
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        qk_norm=True,
        context=32_768,
        scalar=scalar,
    )


def resolved(spec, tokenizer, *, scalar=False):
    """The manifest of a spec for a model with a real tokenizer."""
    root = tokenizer_folder(tokenizer)
    where, data = load_spec(root, spec)
    arch = architecture(tokenizer, scalar=scalar)
    return resolve_spec(where, data, arch, vocabulary_of(tokenizer), chat_template_of(tokenizer), root)


@cache
def of(name):
    """The manifest of a recipe, its encoder, and the name of its tokenizer."""
    _, _, tokenizer, scalar = FAMILIES[name]
    manifest = resolved(fragment(find_recipe(name), "m"), tokenizer, scalar=scalar)
    return manifest, PromptEncoder(tokenizer_folder(tokenizer) / "tokenizer.json", manifest), tokenizer


def chat_template_of(tokenizer):
    return read_chat_template(tokenizer_folder(tokenizer), vocabulary_of(tokenizer))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS))
    return path


def test_each_recipe_is_tried():
    assert set(FAMILIES) == set(all_recipes())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_recipe_is_recognised_or_asked_for(name):
    folder, family, _, scalar = FAMILIES[name]
    class_ = {"qwen2": "Qwen2", "qwen3": "Qwen3", "llama": "Llama"}[family]
    class_ += "ForSequenceClassification" if scalar else "ForCausalLM"
    found = recognise(folder, class_, chat_template=True).recipe
    assert found.name == ("yes-no" if name == "pairwise" else name)  # the other generic recipe has to be asked for


def test_only_the_last_part_of_a_path_or_the_name_on_the_hub_counts(tmp_path, monkeypatch):
    folder = tmp_path / "gram-qwen3" / "rrm-7b-runs" / "my-model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    monkeypatch.chdir(folder.parent)
    for given in (folder, str(folder) + "/", "my-model", "./my-model", "my-model/."):
        assert checkpoint_name(given) == "my-model"
    assert choose_spec(folder, None, None, known_as=checkpoint_name(folder)).recognised.recipe.name == "yes-no"
    monkeypatch.chdir(folder)
    assert checkpoint_name(".") == "my-model"
    assert checkpoint_name("Reward-Reasoning/RRM-7B") == "Reward-Reasoning/RRM-7B"
    cached = tmp_path / "models--Qwen--Qwen3-Reranker-0.6B" / "snapshots" / ("ab" * 20)
    cached.mkdir(parents=True)
    assert checkpoint_name(cached) == "Qwen/Qwen3-Reranker-0.6B"
    with pytest.raises(ExportError, match="called like the models of the recipe 'rrm', but is a Qwen3"):
        choose_spec(folder, None, None, known_as=checkpoint_name("Reward-Reasoning/RRM-7B"))


@pytest.mark.parametrize(
    ("folder", "recipe", "where"),
    [
        ("Qwen3-Reranker-ft/checkpoint-500", "qwen3-reranker", "the folder above it"),
        ("GRAM-Qwen3-1.7B-mine/final/global_step_20", "gram", "the folder above it"),
        ("my-program-rrm/final", "yes-no", ""),
        ("runs/checkpoint-500", "yes-no", ""),
        ("programs/gram-qwen3.5", "yes-no", ""),
    ],
)
def test_the_folders_above_count_where_a_trainer_has_named_the_last_one(folder, recipe, where, tmp_path):
    found = chosen(tmp_path / folder).recognised
    assert found.recipe.name == recipe
    assert found.why.startswith(f"by {where or 'its class'}")
    assert found.guesses[0].startswith(f"guessed from {where}" if where else "guessed: that it is a chat model")


def chosen(folder, config=None, card=None):
    """The recipe for an empty folder with a config, perhaps a model card, and a chat template."""
    folder.mkdir(parents=True)
    config = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", **(config or {})}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    if card is not None:
        (folder / "README.md").write_text(card)
    return choose_spec(folder, None, None, known_as=checkpoint_name(folder))


def test_what_a_checkpoint_was_made_from_is_a_guess_that_is_printed(tmp_path):
    found = chosen(tmp_path / "a", {"_name_or_path": "/data/Qwen3-Reranker-0.6B/"})
    assert found.recognised.recipe.name == "qwen3-reranker"
    guess = "guessed from '_name_or_path' in its config.json, /data/Qwen3-Reranker-0.6B: that this checkpoint is asked"
    assert any(line.startswith(guess) and "--recipe" in line for line in found.sentences())
    for base in (
        "base_model: Qwen/Qwen3-Reranker-4B",
        'base_model:\n  - x/y\n  - "Qwen/Qwen3-Reranker-4B"\nlibrary: z',
    ):
        found = chosen(tmp_path / str(len(base)), card=f"---\nlicense: mit\n{base}\n---\n# text\n").recognised
        assert found.recipe.name == "qwen3-reranker"
        assert found.why.startswith("by 'base_model' in its README.md")
    scalar = chosen(
        tmp_path / "b", {"_name_or_path": "Qwen3-Reranker", "architectures": ["Qwen3ForSequenceClassification"]}
    )
    assert scalar.recognised.recipe.name == "scalar"  # a reward model that was made from a reranker is none
    assert scalar.recognised.guesses == ()
    assert chosen(tmp_path / "c", card="base_model: Qwen/Qwen3-Reranker-4B").recognised.recipe.name == "yes-no"


def test_names_are_compared_by_whole_words():
    assert recognise("my-program-rrm-7b", "Qwen2ForCausalLM", chat_template=True).recipe.name == "rrm"
    assert recognise("Programmes/Prometheus2-ft", "MistralForCausalLM", chat_template=True).recipe.name == "prometheus"
    for name in ("telegram-rrs", "prometheusly", "xrrm-7b", "skywork-reward-v2.5-x", "skywork-reward-v20"):
        assert recognise(name, "LlamaForCausalLM", chat_template=True).recipe.name == "yes-no"


def test_a_judge_of_another_kind_is_not_taken_for_any_chat_model():
    with pytest.raises(ExportError, match=r"JudgeLRM-7B .* writes a rating of its own making .* --recipe pairwise"):
        recognise("nuojohnchen/JudgeLRM-7B", "Qwen2ForCausalLM", chat_template=True)
    from_it = [Trace("x/JudgeLRM-3B", "'_name_or_path' in its config.json")]
    with pytest.raises(ExportError, match=r"in its config\.json: x/JudgeLRM-3B"):
        recognise("mine", "Qwen2ForCausalLM", chat_template=True, traces=from_it)
    for name, word in (("org/Con-J-critic", "critic"), ("my_judge_8b", "judge"), ("bge-reranker-x", "reranker")):
        *_, doubt = recognise(name, "Qwen2ForCausalLM", chat_template=True).guesses
        assert doubt.startswith(f"warning: its name, {name}, has '{word}' in it")
    assert len(recognise("org-rm/llama-chat", "LlamaForCausalLM", chat_template=True).guesses) == 1


R1 = (  # as R1-Distill's checkpoints have it; the older ones leave the beginning of the thought to the model
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_end|>' + m.content.split('</think>')[-1] }}"
    "{% else %}{{ '<|im_start|>' + m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_end|>' + BEGIN }}{% endif %}"
)


@needs_tokenizers
@pytest.mark.parametrize("begin", ["''", "'<think>\\n'"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_fast_prompt_has_its_thought_closed(name, begin):
    """Whatever the chat template opens, the first token that is read is that of the answer."""
    root = tokenizer_folder("qwen3")
    chat = ChatTemplate(R1.replace("BEGIN", begin), {})
    where, data = load_spec(root, fragment(find_recipe(name), "m"))
    scalar = FAMILIES[name][3]
    manifest = resolve_spec(where, data, architecture("qwen3", scalar=scalar), vocabulary_of("qwen3"), chat, root)
    for kind, template in manifest.templates.items():
        open_thoughts = template.text.count("<think>\n") - template.text.count("</think>")
        thinks = template.verdict is not None and "</think>" in template.verdict.close
        if kind.endswith("_fast") and not scalar:
            asked = template.text.rsplit("<|im_end|>", 1)[1]
            assert asked.count("<think>") == asked.count("</think>")
            judge = manifest.templates.get("pairwise_slow")
            if begin != "''" or (judge and "</think>" in judge.verdict.close):
                assert asked.count("</think>") == 1
        elif thinks and begin != "''":
            assert open_thoughts == 1  # and the judge begins within its thought


def test_what_is_not_known_is_refused_with_what_to_do():
    with pytest.raises(ExportError, match=r"nothing is known about my-model.* name it with --spec"):
        recognise("my-model", "Qwen3ForCausalLM", chat_template=False)
    with pytest.raises(ExportError, match="called like the models of the recipe 'skywork-reward-v2', but is a Qwen2"):
        recognise("Skywork-Reward-V2-x", "Qwen2ForCausalLM", chat_template=True)
    with pytest.raises(ExportError, match="no recipe 'skywrok'; expected one of gram, "):
        find_recipe("skywrok")


def conversations(tokenizer, count):
    """Random conversations and two responses each. None spells a control token, which transformers would take for one.

    Half of the conversations end with the user, as prompts do.
    """
    _, forms = role_forms_of(tokenizer)
    rng, found = random.Random(5), 0
    for talk in random_conversations(forms, 10 * count, seed=11):
        texts = [text for message in talk for text in message.values()]
        if (
            any(tag in text for text in texts for tag in ("think>", "tool_response>"))
            or not "".join(texts[1::2]).strip()
        ):
            continue
        yield (
            talk,
            [rng.choice(["5", " spaced ", "two\nlines", "caf\u00e9 {x}", '"q" \\', "\n\n- 1\n"]) for _ in range(2)],
        )
        found += 1
        if found == count:
            return


@cache
def role_forms_of(tokenizer):
    template = chat_template_of(tokenizer)
    return template, find_role_forms(template)


@needs_tokenizers
@pytest.mark.parametrize("name", FAMILIES)
def test_ids_equal_those_of_transformers_on_random_conversations(name):
    """The prompt that a user of transformers would make of the recipe's messages, filled in, by the chat template."""
    manifest, encoder, tokenizer_name = of(name)
    tokenizer, compared = transformers_tokenizer(tokenizer_name), 0
    for talk, responses in conversations(tokenizer_name, 200):
        for template, entry in find_recipe(name).spec["templates"].items():
            ids = getattr(encoder, template)(talk, *responses[: 1 if template.startswith("pointwise") else 2])
            if entry.get("text") == "{conversation}":
                answered = [*talk, {"role": "assistant", "content": responses[0]}]
                text = tokenizer.apply_chat_template(answered, tokenize=False)
            else:
                text = by_transformers(tokenizer, template, entry, talk, responses)
            assert ids == tokenizer.encode(text, add_special_tokens=False)
            compared += 1
    assert compared == 200 * len(manifest.templates)
    labels = {label.text: label.id for label in (*manifest.labels, *manifest.pair_labels)}
    assert all(encoder.decode([token]) == text for text, token in labels.items())


def by_transformers(tokenizer, template, entry, talk, responses):
    """A recipe's messages, filled in before the chat template writes them."""
    slots = {"prompt": prompt_text(talk), "response": responses[0]}
    slots |= dict(zip(("response_a", "response_b"), responses, strict=True))
    filled = [
        {**m, "content": re.sub(r"\{(\w+)\}", lambda slot: slots.get(slot[1], slot[0]), m["content"])}
        for m in entry["messages"]
    ]
    think = entry.get("thinking", not template.endswith("_fast"))
    text = tokenizer.apply_chat_template(filled, tokenize=False, add_generation_prompt=True, enable_thinking=think)
    return text + entry.get("answer", "")


@needs_tokenizers
@pytest.mark.parametrize("name", FAMILIES)
def test_the_ids_that_stand_in_a_recipe_are_those_of_its_examples(name):
    _, encoder, tokenizer = of(name)
    examples = find_recipe(name).examples
    assert len(examples) == 2
    for example in examples:
        assert example["tokenizer"] == tokenizer
        ids = getattr(encoder, example["template"])(example["prompt"], *example["responses"])
        assert ids == [int(i) for i in example["ids"].split()]


@needs_tokenizers
@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_from_a_folder_to_results(name, rows, tmp_path, monkeypatch):
    """export, verify, score, compare, rank, best-of-n, calibrate: with files of data, and nothing else written."""
    monkeypatch.setattr("fsrm_lite.export.stages.thought_budget", lambda *_: 8)  # random weights end no thought
    folder, family, tokenizer, scalar = FAMILIES[name]
    checkpoint, bundle = public_checkpoint(tmp_path / folder, family, tokenizer, scalar=scalar), tmp_path / "out"
    arguments = [word for key, value in LOOSE.items() for word in ("--tolerance", f"{key}={value}")]
    arguments += ["--recipe", name] if name == "pairwise" else []
    done = call("export", checkpoint, "-o", bundle, "--calibration", rows, *arguments)
    assert done.exit_code == 0, done.output
    assert f"recipe {name} (" in done.stderr
    assert "assumed: " in done.stderr
    verified(bundle)
    on_the_command_line(bundle, tmp_path)
    with FastSlowRM.from_pretrained(bundle, thinking_tokens=8) as rm:
        use(rm, "always" if rm.bundle.has("slow") else "auto")
    calibrated(bundle, tmp_path)
    verified(bundle)  # the gate stands in the manifest, and nothing else changed
    with FastSlowRM.from_pretrained(bundle, thinking_tokens=8) as rm:
        compared = rm.compare("How much is 2 + 3?", "5", "6")
    assert compared.escalated
    assert (compared.route == "slow") == ("pairwise_slow" in rm.bundle.manifest.templates)


def verified(bundle):
    checked = call("verify", bundle)
    assert checked.exit_code == 0, checked.output
    assert "examples give the noted ids" in checked.stdout
    assert "WRONG" not in checked.stdout


def on_the_command_line(bundle, folder):
    """Each command on rows of data; a model that reads pairs only says so where it is asked for a score."""
    data, answers = folder / "data.jsonl", ["5", "6", "It is five."]
    row = {"prompt": "How much is 2 + 3?", "response": "5", "chosen": "5", "rejected": "6", "responses": answers}
    data.write_text(f"{json.dumps(row)}\n" * 2)
    scores_responses = "pointwise_fast" in Bundle.open(bundle).manifest.templates
    for command, field in (("score", "score"), ("compare", "winner"), ("rank", "ranking"), ("best-of-n", "ranking")):
        done = call(command, data, "--model", bundle, "--judge", "never")
        if command in ("score", "rank") and not scores_responses:
            assert done.exit_code == 2
            assert "reads pairs of responses and gives no score to a single one; call compare" in done.stderr
            continue
        assert done.exit_code == 0, done.output
        first, second = (json.loads(line) for line in done.stdout.splitlines())
        assert first[field] == second[field]
        if command == "compare":
            assert (first["scores"] is None) == (not scores_responses)
        if field == "ranking":
            assert sorted(first["ranking"]) == [0, 1, 2]


def calibrated(bundle, folder):
    """Put a gate into the manifest; random weights prove nothing, so it is the one that always asks the judge."""
    data = folder / "labelled.jsonl"
    pairs = [{"prompt": f"How much is {i} + 3?", "chosen": str(i + 3), "rejected": str(i + 4)} for i in range(50)]
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    options = ("--risk", "0.01", "--judge", "never", "--resamples", "2", "--json", "--write")
    done = call("calibrate", data, "--model", bundle, *options)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["gate"]["always"]
    assert Bundle.open(bundle).manifest.gate.to_dict() == report["gate"]


def use(rm, judge):
    """Whatever a user may call."""
    question, answers = "How much is 2 + 3?", ["5", "6", "It is five.", ""]
    kinds = rm.bundle.manifest.templates
    compared = rm.compare(question, "5", "6", judge=judge if "pairwise_slow" in kinds else "auto")
    assert 0 <= compared.p_first <= 1
    assert (
        rm.compare(question, "6", "5", judge="never").winner == 1 - rm.compare(question, "5", "6", judge="never").winner
    )
    selection = rm.best_of_n(question, answers, judge="never")
    assert selection.ranking[-1] == 3
    if "pointwise_fast" in kinds:
        score = rm.score(question, "5", judge=judge if "pointwise_slow" in kinds else "auto")
        assert 0 <= score.score <= 1
        assert len(rm.rank(question, answers[:3], judge="never")) == 3
        assert (score.label_mass is None) == (rm.bundle.manifest.head == "scalar")
    else:
        assert compared.scores is None
        assert selection.scores == ()
        with pytest.raises(InputError, match=r"reads pairs of responses .* call compare"):
            rm.score(question, "5")
        with pytest.raises(InputError, match="call compare"):
            rm.rank(question, answers[:3])
    for data in ("judgebench.jsonl", "rm_bench.json"):
        benchmark, options = as_asked(rm, load_benchmark(DATA / data), EvalOptions(judge="never", limit=2))
        records = evaluate(rm, benchmark, options)
        assert records
        assert not any(r.unread for r in records)
        assert benchmark.format.pairwise == (data == "judgebench.jsonl" or "pointwise_fast" not in kinds)


@needs_tokenizers
@pytest.mark.slow
def test_a_scalar_head_whose_padding_ends_its_texts_is_refused(tmp_path):
    """transformers reads the reward at the last token that is no padding: one token earlier than a bundle would."""
    folder = public_checkpoint(tmp_path / "reward", "qwen3", "qwen3", scalar=True)
    config = json.loads((folder / "config.json").read_text())
    source = open_source(folder, fragment(find_recipe("scalar"), "m"), None)
    config["pad_token_id"] = source.fast_ids[0][-1]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedCheckpointError, match=r"which config\.json names as pad_token_id"):
        open_source(folder, fragment(find_recipe("scalar"), "m"), None)


@needs_tokenizers
@pytest.mark.slow
def test_a_scalar_head_gives_the_reward_of_transformers(rows, tmp_path):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = public_checkpoint(tmp_path / "Skywork-Reward-V2-Qwen3-0.6B", "qwen3", "qwen3", scalar=True)
    manifest = export_checkpoint(folder, tmp_path / "out", fast="fp32", calibration=rows, tolerance=LOOSE)
    assert manifest.head == "scalar"
    assert set(manifest.files) == {"tokenizer", "fast"}
    assert manifest.card["parity"]["fast"]["tolerance"].keys() == {"delta_logit", "decisions", "routes"}
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How much is 2 + 3?"},
        {"role": "assistant", "content": "Five?"},
        {"role": "user", "content": "Are you sure?"},
    ]
    with FastSlowRM.from_pretrained(tmp_path / "out") as rm:
        for prompt in (talk, talk[1:2], "How much is 2 + 3?"):
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            text = tokenizer.apply_chat_template(
                [*messages, {"role": "assistant", "content": "Yes, 5."}], tokenize=False
            )
            with torch.no_grad():
                reward = model(**tokenizer(text, return_tensors="pt")).logits[0][0].item()
            score = rm.score(prompt, "Yes, 5.", judge="never")
            assert score.logit == pytest.approx(reward, abs=1e-4)
            assert score.distribution_confidence is None
            assert json.loads(json.dumps(score.to_dict()))["label_mass"] is None
        assert not rm.fast.follows
        assert not rm.fast.gives_intermediate


@needs_tokenizers
@pytest.mark.slow
def test_an_export_of_labels_that_the_model_does_not_say_fails_before_the_graph_is_written(rows, tmp_path):
    folder = public_checkpoint(tmp_path / "Qwen3-Reranker-0.6B", "qwen3", "qwen3")
    stages = []
    with pytest.raises(
        ToleranceError, match=r"labels 'yes', 'no' have a median probability of .*; likely cause: a templ"
    ):
        export_checkpoint(
            folder, tmp_path / "out", slow="none", calibration=rows, progress=lambda stage, *_: stages.append(stage)
        )
    assert "fast file" not in stages
    assert not (tmp_path / "out").exists()


@needs_tokenizers
def test_another_models_control_tokens_are_refused():
    spec = fragment(find_recipe("yes-no"), "m")
    text = "<|start_header_id|>user<|end_header_id|>\n\n{prompt} {response}<|eot_id|>"
    spec = {**spec, "templates": {"pointwise_fast": {"text": text}}}
    with pytest.raises(ExportError, match=r"template 'pointwise_fast' spells <\|end_header_id\|>, .* it has <\|"):
        refuse_foreign_tokens(resolved(spec, "qwen3"), vocabulary_of("qwen3"))
    for name in FAMILIES:
        own, _, tokenizer = of(name)
        refuse_foreign_tokens(own, vocabulary_of(tokenizer))


@needs_tokenizers
def test_a_missing_start_and_a_missing_stub_are_doubtful():
    def manifest_of(text):
        return replace(plain_manifest(), templates={"pointwise_fast": Template(text)})

    def doubts_of(text, tokenizer):
        return doubts(manifest_of(text), chat_template_of(tokenizer))

    user = "<|start_header_id|>user<|end_header_id|>\n\n{prompt} {response}<|eot_id|>"
    (start,) = doubts_of(user, "llama3_1")
    assert "'pointwise_fast' does not begin with '<|begin_of_text|>'" in start
    assert doubts_of("<|begin_of_text|>" + user, "llama3_1") == []
    asked = "<|im_start|>user\n{prompt} {response}<|im_end|>\n<|im_start|>assistant\n"
    (stub,) = doubts_of(asked, "qwen3")
    assert "behind which this model would think" in stub
    assert doubts_of(asked + "<think>\n\n</think>\n\n", "qwen3") == []
    assert doubts(manifest_of(asked), None) == []  # nothing to compare with


@needs_tokenizers
@pytest.mark.parametrize("name", FAMILIES)
def test_a_recipe_is_not_doubtful_but_would_be_without_what_the_chat_template_writes(name):
    manifest, _, tokenizer = of(name)
    chat = chat_template_of(tokenizer)
    assert doubts(manifest, chat) == []
    start, stub = chat.names.get("bos_token", ""), chat.answer_begins(think=False)
    stub = stub.removeprefix(chat.answer_begins(think=True))
    changed = 0
    for kind, template in manifest.templates.items():
        text = template.text.removeprefix(start)
        text = text.removesuffix(stub) if kind.endswith("_fast") else text
        if text != template.text:
            assert len(doubts(replace(manifest, templates={kind: replace(template, text=text)}), chat)) == 1
            changed += 1
    assert bool(changed) == (name in {"qwen3-reranker", "gram", "gram-rr", "yes-no", "pairwise"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["labels"][0].update(vlaue=1), "label 0 has unknown keys vlaue; expected among text, value"),
        (
            lambda s: s["templates"]["pointwise_slow"]["verdict"].update(sufix="}"),
            "the verdict of template 'pointwise_slow' has unknown keys sufix",
        ),
        (lambda s: s["templates"]["pointwise_fast"].update(txet=""), "template 'pointwise_fast' has unknown keys txet"),
        (lambda s: s["limits"].update(contxt=1), "limits has unknown keys contxt"),
        (lambda s: s.update(judge={"temprature": 1}), "judge has unknown keys temprature; expected among temperature"),
        (
            lambda s: s["templates"]["pointwise_fast"]["messages"][0].update(rol="x"),
            "message 0 of template 'pointwise_fast' has unknown keys rol",
        ),
    ],
)
def test_misspelt_keys_inside_a_spec_are_refused(change, message, tmp_path):
    spec = json.loads(json.dumps({**fragment(find_recipe("yes-no"), "m"), "limits": {"context": 64}}))
    change(spec)
    with pytest.raises(ExportError, match=message):
        load_spec(tmp_path, spec)


@pytest.mark.parametrize(
    ("class_", "recipe", "fits"),
    [
        ("Qwen3ForCausalLM", "scalar", "such as yes-no or pairwise"),
        ("Qwen3ForCausalLM", "skywork-reward-v2", "such as yes-no or pairwise"),
        ("Qwen3ForSequenceClassification", "yes-no", "such as scalar"),
        ("Qwen3ForSequenceClassification", "pairwise", "such as scalar"),
    ],
)
def test_a_recipe_for_another_kind_of_head_is_refused(class_, recipe, fits, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [class_]}))
    with pytest.raises(
        ExportError, match=f"recipe '{recipe}' is for models with .*, and m is a {class_}.*{fits}"
    ) as told:
        choose_spec(tmp_path, None, recipe, known_as="m")
    assert "fsrm.json" not in str(told.value)  # the user has written none


@needs_tokenizers
@pytest.mark.parametrize(("name", "scalar"), [("yes-no", True), ("pairwise", True), ("scalar", False)])
def test_a_spec_for_another_kind_of_head_is_refused(name, scalar):
    why = "it asks for a word .* scalar head" if scalar else "without labels, as for a scalar head, .* answers in words"
    with pytest.raises(ExportError, match=why) as told:
        resolved(fragment(find_recipe(name), "m"), "qwen3", scalar=scalar)
    assert "fsrm.json" not in str(told.value)


@needs_tokenizers
def test_a_missing_chat_template_is_named(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": ""}')
    assert not has_chat_template(tmp_path)
    for name, what in (("rrm", "given as messages"), ("scalar", "has no chat template")):
        where, data = load_spec(tmp_path, fragment(find_recipe(name), "m"))
        arch, root = architecture("qwen3", scalar=name == "scalar"), tokenizer_folder("qwen3")
        with pytest.raises(ExportError, match=f"{what}.* save the tokenizer there") as told:
            resolve_spec(where, data, arch, vocabulary_of("qwen3"), None, root)
        assert len(str(told.value).splitlines()) == 1


@needs_tokenizers
def test_an_empty_close_is_refused():
    spec = json.loads(json.dumps(fragment(find_recipe("yes-no"), "m")))
    spec["templates"]["pointwise_slow"]["verdict"]["close"] = " \n"
    with pytest.raises(ExportError, match="template 'pointwise_slow' has a verdict with an empty 'close'"):
        resolved(spec, "qwen3")


@needs_tokenizers
@pytest.mark.slow
def test_a_head_with_several_outputs_is_refused(tmp_path):
    folder = public_checkpoint(tmp_path / "multi", "qwen3", "qwen3", scalar=True, outputs=3)
    with pytest.raises(UnsupportedCheckpointError, match=r"has 3 outputs .* expected 1, the reward"):
        export_checkpoint(folder, tmp_path / "out")


def test_recipes_are_listed():
    shown = CliRunner().invoke(recipes, [])
    assert shown.exit_code == 0
    for name in all_recipes():
        assert f"{name}\n  reads " in shown.stdout
    assert "Skywork/Skywork-Reward-V2-Qwen3-0.6B gives 7.875 for" in shown.stdout
    assert {r["name"] for r in json.loads(CliRunner().invoke(recipes, ["--json"]).stdout)} == set(all_recipes())


def test_a_recipe_is_printed_and_can_be_given_back(tmp_path):
    (tmp_path / "RRM-7B").mkdir()
    (tmp_path / "RRM-7B" / "config.json").write_text('{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}')
    shown = CliRunner().invoke(export, [str(tmp_path / "RRM-7B"), "--print-recipe"])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout) == fragment(find_recipe("rrm"), "RRM-7B")
    (tmp_path / "spec.json").write_text(shown.stdout)
    assert load_spec(tmp_path, tmp_path / "spec.json")[1]["pair_labels"] == ["1", "2"]


@pytest.mark.parametrize("name", ["no-such-folder", "no/such/name", "org/does-not-exist"])
def test_an_unknown_name_is_one_line(name, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(export, [name, "-o", "out"])
    assert done.exit_code == 2
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert "folder" in lines[0] or "check the name and the network" in lines[0]
