"""A bundle from the trainer: a few real steps of TRL's RewardTrainer on a tiny model."""

import json

import pytest
from helpers.export import build_model, build_tokenizer

from fsrm_lite import FastSlowRM
from fsrm_lite.errors import BundleError, ExportError

for module in ("torch", "transformers", "onnx", "gguf"):
    pytest.importorskip(module)

CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def tokenizer(transformers):
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT,
        model_input_names=["input_ids", "attention_mask"],
    )


@pytest.mark.slow
@pytest.mark.parametrize("when", ["end", "save"])
def test_reward_trainer_leaves_a_bundle_that_scores(when, tmp_path):
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")
    import transformers

    from fsrm_lite.export import ExportCallback

    rows = tmp_path / "pairs.jsonl"
    rows.write_text(json.dumps({"prompt": "2 + 3?", "responses": ["5", "6", "seven"]}) + "\n")
    config = build_model("qwen3").config
    words = tokenizer(transformers)
    config.num_labels, config.pad_token_id = 1, words.pad_token_id
    model = transformers.Qwen3ForSequenceClassification(config)
    said = [{"role": "user", "content": "2 + 3?"}]
    data = datasets.Dataset.from_list(
        [
            {
                "chosen": [*said, {"role": "assistant", "content": "5"}],
                "rejected": [*said, {"role": "assistant", "content": "6"}],
            }
        ]
        * 4
    )
    told = []
    callback = ExportCallback(
        tmp_path / "bundle", when=when, on_error="raise", log=told.append, calibration=rows, fast="fp32"
    )
    trainer = trl.RewardTrainer(
        model=model,
        args=trl.RewardConfig(
            output_dir=str(tmp_path / "run"),
            max_steps=2,
            save_steps=2,
            per_device_train_batch_size=2,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            bf16=False,
            gradient_checkpointing=False,
        ),
        train_dataset=data,
        processing_class=words,
        callbacks=[callback],
    )
    trainer.train()
    out = tmp_path / "bundle" if when == "end" else tmp_path / "bundle" / "step-2"
    assert told == [f"exported {out}: parity passed"]
    with FastSlowRM.from_pretrained(out) as rm:
        assert rm.bundle.manifest.card["parity"]["passed"]
        assert rm.bundle.manifest.card["recipe"]["name"] == "scalar"
        text = trainer.processing_class.apply_chat_template(
            [*said, {"role": "assistant", "content": "5"}], tokenize=False
        )
        trained = trainer.model.float().eval()
        reward = trained(**trainer.processing_class(text, return_tensors="pt")).logits[0][0].item()
        assert rm.score("2 + 3?", "5", judge="never").logit == pytest.approx(reward, abs=1e-3)


class Broken:
    """A model that cannot be saved."""

    def __init__(self, error):
        self.error = error

    def save_pretrained(self, folder):
        raise self.error


def end(callback, model, **given):
    """End a training with this callback."""
    import transformers

    state = transformers.TrainerState(is_world_process_zero=True)
    callback.on_train_end(None, state, None, model=model, **given)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
        (RuntimeError("shared\ntensors"), "RuntimeError: shared tensors"),
        (BundleError("not whole"), "not whole"),
        (None, "the trainer has no processing_class"),
    ],
)
def test_whatever_fails_ends_the_training_only_if_asked(error, said, tmp_path):
    from fsrm_lite.export import ExportCallback

    out, told = tmp_path / "out", []
    given = {} if error is None else {"processing_class": object()}
    end(ExportCallback(out, log=told.append), Broken(error), **given)
    assert len(told) == 1
    assert told[0].startswith(f"the export of {out} failed: {said}")
    with pytest.raises(type(error or ExportError(""))):
        end(ExportCallback(out, on_error="raise"), Broken(error), **given)
    assert not out.exists()


def test_a_failed_export_ends_the_training_only_if_asked(tmp_path):
    import transformers

    from fsrm_lite.export import ExportCallback
    from fsrm_lite.export.callback import merged

    model, told = build_model("qwen3"), []
    given = {"processing_class": tokenizer(transformers)}
    end(ExportCallback(tmp_path / "out", log=told.append, recipe="nonsense"), model, **given)
    assert len(told) == 1
    assert told[0].startswith(f"the export of {tmp_path / 'out'} failed: there is no recipe 'nonsense'")
    with pytest.raises(ExportError, match="no recipe"):
        end(ExportCallback(tmp_path / "out", on_error="raise", recipe="nonsense"), model, **given)
    with pytest.raises(ExportError, match="when is 'always'"):
        ExportCallback(tmp_path / "out", when="always")
    with pytest.raises(ExportError, match="unknown options checkpoint, fsat; expected among spec, recipe, name, fast"):
        ExportCallback(tmp_path / "out", fsat="int8", checkpoint="x")
    assert merged(model) is model


@pytest.mark.parametrize(
    ("began_with", "options", "folder", "name"),
    [
        ("Reward-Reasoning/RRM-7B", {}, "RRM-7B", "gram-rr"),
        ("/models/rrm-7b/Qwen3-8B/", {"name": "mine"}, "Qwen3-8B", "mine"),
        ("", {}, "checkpoint", "gram-rr"),
    ],
)
def test_a_model_is_recognised_by_what_it_began_as_and_not_by_the_output(
    began_with, options, folder, name, tmp_path, monkeypatch
):
    import transformers

    from fsrm_lite.export import ExportCallback

    model, asked = build_model("qwen3"), []

    def stop(checkpoint, out, **given):
        asked.append((checkpoint.name, sorted(p.name for p in checkpoint.iterdir()), given["name"]))
        raise ExportError("far enough")

    callback = ExportCallback(tmp_path / "gram-rr", log=lambda line: None, **options)
    monkeypatch.setattr("fsrm_lite.export.callback.export_checkpoint", stop)
    model.config._name_or_path = began_with
    end(callback, model, processing_class=tokenizer(transformers))
    ((known_as, files, called),) = asked
    assert (known_as, called) == (folder, name)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(files)


def test_adapters_are_merged_into_a_copy():
    from fsrm_lite.export.callback import merged

    class Adapted:
        whole = False

        def merge_and_unload(self):
            self.whole = True
            return self

    model = Adapted()
    assert merged(model).whole
    assert not model.whole
