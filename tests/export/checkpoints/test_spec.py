import copy
import json

import pytest
from helpers.export import SPEC, build_tokenizer, write_tokenizer
from tokenizers import Tokenizer

from fsrm_lite.errors import ExportError
from fsrm_lite.export.checkpoints.checkpoint import Architecture
from fsrm_lite.export.checkpoints.spec import load_spec, resolve_spec
from fsrm_lite.export.checkpoints.vocabulary import read_vocabulary

ARCH = Architecture("qwen3", 96, 2, 6, 2, 24, 160, 433, 1e-5, 1e4, None, True, False, False, False, True, 256)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spec")
    write_tokenizer(folder, build_tokenizer())
    return folder


def resolve(root, change=lambda spec: None):
    spec = copy.deepcopy(SPEC)
    change(spec)
    return resolve_spec("spec.json", spec, ARCH, read_vocabulary(root, ARCH.vocab_size), None, root)


@pytest.mark.parametrize("entry", [{"text": "{conversation}"}, {"messages": "conversation"}])
def test_conversations_need_a_chat_template(entry, root):
    with pytest.raises(ExportError, match="has no chat template"):
        resolve(root, lambda spec: spec["templates"].update(pointwise_fast=entry))


def test_words_become_the_ids_that_stand_in_their_context(root):
    manifest = resolve(root)
    tokenizer = Tokenizer.from_file(str(root / "tokenizer.json"))
    whole = tokenizer.encode("<|im_start|>assistant\nYes", add_special_tokens=False).ids
    assert manifest.labels[0].id == whole[-1]
    verdict = manifest.templates["pairwise_slow"].verdict
    boxed = tokenizer.encode("</think>\n\n\\boxed{Assistant 2}", add_special_tokens=False).ids
    assert verdict.choice_ids[1] in boxed
    assert manifest.stop_ids == (tokenizer.token_to_id("<|im_end|>"),)
    assert set(manifest.special_tokens) == {"<|im_start|>", "<|im_end|>", "<think>", "</think>"}


def test_a_label_behind_a_space_is_another_token_than_one_behind_a_line_break(root):
    def plain(spec):
        spec["templates"] = {"pointwise_fast": {"text": "{prompt}\n{response}\nIs the answer correct? Answer:"}}
        spec["labels"] = [{"text": " 1", "value": 1}, {"text": " 2", "value": 2}]

    with pytest.raises(ExportError, match="the label ' 1' is not a single token behind"):
        resolve(root, plain)


def test_ratings_and_defaults(root):
    def ratings(spec):
        spec["labels"] = [{"text": str(i), "value": i} for i in range(1, 10)]
        for key in ("stop", "gate", "limits"):
            del spec[key]

    manifest = resolve(root, ratings)
    assert [label.value for label in manifest.labels] == list(range(1, 10))
    assert manifest.limits.context == 256
    assert manifest.limits.thinking_tokens == 128
    assert manifest.stop_ids  # the tokenizer's own eos


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("labels"), "spec.json: it has the template 'pointwise_fast' without labels"),
        (lambda s: s["labels"].pop(), "1 labels, expected at least 2"),
        (lambda s: s["labels"][1].update(text="Yes"), "two labels the same token id"),
        (lambda s: s.update(name=""), "'name' is empty"),
        (lambda s: s.update(stop=["<eos>"]), "\"stop\" names '<eos>', which is no token"),
        (lambda s: s.update(special_tokens=["<nope>"]), "\"special_tokens\" names '<nope>'"),
        (lambda s: s["templates"].pop("pointwise_fast"), "'pointwise_fast' is missing"),
        (lambda s: s["templates"].update(other={"text": "{prompt}"}), "template 'other' is unknown"),
        (lambda s: s["templates"]["pairwise_slow"].pop("verdict"), "'pairwise_slow' has no verdict form"),
        (lambda s: s["templates"]["pointwise_slow"]["verdict"].update(values=[1]), "1 values for 2 choices"),
        (lambda s: s.update(gate={"threshold": 1}), r"gate: unknown keys \['threshold'\]"),
        (lambda s: s.update(judge={"votes": 1, "beams": 2}), "beams"),
    ],
)
def test_resolve_names_the_entry(change, message, root):
    with pytest.raises(ExportError, match=message) as caught:
        resolve(root, change)
    assert str(caught.value).startswith("spec.json: ")


def test_load_spec_takes_a_mapping_a_file_or_the_checkpoints_own(tmp_path):
    (tmp_path / "fsrm.json").write_text(json.dumps(SPEC))
    (tmp_path / "other.json").write_text(json.dumps({**SPEC, "name": "other"}))
    assert load_spec(tmp_path, None)[1] == SPEC
    assert load_spec(tmp_path, tmp_path / "other.json")[1]["name"] == "other"
    assert load_spec(tmp_path, SPEC) == ("the spec", SPEC)
    (tmp_path / "other.json").write_text("{")
    with pytest.raises(ExportError, match=r"other\.json is not JSON"):
        load_spec(tmp_path, tmp_path / "other.json")
    for key, value, kind in (
        ("labels", 3, "a list"),
        ("templates", "x", "an object"),
        ("stop", "<|im_end|>", "a list"),
        ("gate", [], "an object"),
    ):
        with pytest.raises(ExportError, match=f"the spec: '{key}' is .*, expected {kind}"):
            load_spec(tmp_path, {**SPEC, key: value})
    with pytest.raises(ExportError, match="unknown keys lables"):
        load_spec(tmp_path, {**SPEC, "lables": []})
