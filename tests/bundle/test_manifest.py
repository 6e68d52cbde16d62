"""The manifest's schema: what it accepts, and how it refuses."""

import contextlib
import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsrm_lite.bundle.manifest import FORMAT_VERSION, Manifest, check_template, template_parts
from fsrm_lite.errors import BundleError

GOOD = {
    "format_version": FORMAT_VERSION,
    "name": "m",
    "labels": [{"text": "Yes", "id": 5, "value": 1}, {"text": "No", "id": 6, "value": 0}],
    "templates": {
        "pointwise_fast": {"text": "<s>{prompt} {response}"},
        "pairwise_slow": {
            "text": "{prompt} {response_a} {response_b}",
            "verdict": {
                "close": "</t>",
                "prefix": "A",
                "choices": ["1", "2"],
                "choice_ids": [7, 8],
                "suffix": "",
                "values": [],
            },
        },
    },
    "special_tokens": {"<s>": 0, "</t>": 1},
    "stop_ids": [1],
    "limits": {"context": 64, "thinking_tokens": 8},
    "vocab_size": 10,
    "files": {"fast": {"path": "fast/model.onnx", "bytes": 3, "sha256": "00"}},
}


def changed(**entries):
    data = copy.deepcopy(GOOD)
    data.update(entries)
    return data


FORMS = {"forms": {"start>user": "<s>", "user>assistant": "</t>"}, "endings": {"user": "", "assistant": "</t>"}}


def test_version_1_is_still_read():
    assert Manifest.from_dict(changed(format_version=1)) == Manifest.from_dict(GOOD)


def test_a_conversation_needs_its_forms_and_may_hold_the_response():
    templates = {**GOOD["templates"], "pointwise_fast": {"text": "{conversation}"}}
    with pytest.raises(BundleError, match="has no 'conversation' forms"):
        Manifest.from_dict(changed(templates=templates))
    manifest = Manifest.from_dict(changed(templates=templates, conversation=FORMS))
    assert manifest.conversation.roles == ("user", "assistant")
    assert Manifest.from_dict(manifest.to_dict()) == manifest
    for bad in (
        {"forms": {}},
        {"forms": {"a": 3}, "endings": {}},
        {"forms": {"user": "x"}, "endings": {}},
        {"forms": {"start>root": "x"}, "endings": {}},
        {"forms": {}, "endings": {"root": ""}},
        3,
    ):
        with pytest.raises(BundleError, match="malformed"):
            Manifest.from_dict(changed(conversation=bad))


def test_a_slot_can_be_escaped():
    assert template_parts("{{prompt}} {x y} {{}} {prompt}{response}!") == [
        ("{prompt} {x y} {} ", "prompt"),
        ("", "response"),
        ("!", ""),
    ]
    check_template("pointwise_fast", "{{answer}} {prompt}{response}")
    with pytest.raises(BundleError, match=r"if it is text, write \{\{answer\}\}"):
        check_template("pointwise_fast", "{answer} {prompt}{response}")
    with pytest.raises(BundleError, match=r"names \{prompt\} and \{conversation\} 2 times"):
        check_template("pointwise_fast", "{prompt} {conversation}{response}")


def test_round_trip():
    manifest = Manifest.from_dict(GOOD)
    assert Manifest.from_dict(manifest.to_dict()) == manifest


def test_what_counts_of_several_verdicts_is_kept_and_checked():
    templates = copy.deepcopy(GOOD["templates"])
    name = next(name for name, template in templates.items() if "verdict" in template)
    assert Manifest.from_dict(GOOD).templates[name].verdict.several == "last"
    assert "several" not in Manifest.from_dict(GOOD).to_dict()["templates"][name]["verdict"]
    templates[name]["verdict"]["several"] = "none"
    manifest = Manifest.from_dict(changed(templates=templates))
    assert Manifest.from_dict(manifest.to_dict()).templates[name].verdict.several == "none"
    templates[name]["verdict"]["several"] = "first"
    with pytest.raises(BundleError, match="'several' is 'first', expected 'last' or 'none'"):
        Manifest.from_dict(changed(templates=templates))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ([], "expected an object"),
        (changed(format_version=99), "format_version 99, this package reads 1 and 2"),
        ({k: v for k, v in GOOD.items() if k != "labels"}, "'labels' is missing"),
        (changed(labels=GOOD["labels"][:1]), "1 labels, expected at least 2"),
        (
            changed(labels=[{"text": "a", "id": 5, "value": 1}, {"text": "b", "id": 5, "value": 0}]),
            "two labels the same token id",
        ),
        (changed(labels=[{"text": "a", "id": "x", "value": 1}]), "malformed"),
        (changed(vocab_size=7), "outside the vocabulary of 7"),
        (changed(vocab_size=float("inf")), "malformed"),
        (changed(labels=[{"text": "a", "id": 5, "value": 10**400}, {"text": "b", "id": 6, "value": 0}]), "malformed"),
        (changed(templates={}), "no template 'pointwise_fast'"),
        (changed(templates={"pointwise_fast": {"text": "{prompt}"}}), r"slot \{response\} 0 times"),
        (changed(templates={"pointwise_fast": {"text": "{prompt}{response}{answer}"}}), r"unknown slot \{answer\}"),
        (changed(templates={**GOOD["templates"], "other": {"text": ""}}), "'other' is unknown"),
        (
            changed(templates={**GOOD["templates"], "pointwise_slow": {"text": "{prompt}{response}"}}),
            "has no verdict form",
        ),
        (
            changed(
                templates={
                    **GOOD["templates"],
                    "pointwise_slow": {
                        "text": "{prompt}{response}",
                        "verdict": {
                            "close": "</t>",
                            "prefix": "",
                            "choices": ["y", "n"],
                            "choice_ids": [7, 7],
                            "values": [1, 0],
                        },
                    },
                }
            ),
            "two verdict choices the same token id",
        ),
        (changed(limits={"context": 4, "thinking_tokens": 8}), "limits.context is 4, expected"),
        (changed(limits={"context": "long", "thinking_tokens": 8}), "limits.context is 'long'"),
        (changed(limits={"context": 64, "thinking_tokens": 0.5}), "limits.thinking_tokens is 0.5"),
        (changed(judge={"temperature": "hot"}), "temperature is 'hot'"),
        (changed(judge={"votes": None}), "votes is None"),
        (changed(labels=[{"text": "a", "id": 5, "value": 1}, {"text": "b", "id": 6, "value": 1}]), "not all equal"),
        (changed(labels=[{"text": "a", "id": 5, "value": 1}, {"text": "b", "id": 6, "value": float("nan")}]), "finite"),
        (changed(limits={"context": 64}), "malformed"),
        (changed(gate={"intuition_threshold": 2}), "intuition_threshold"),
        (changed(gate={"nonsense": 2}), "unknown keys"),
        (changed(judge={"nonsense": 2}), "malformed"),
    ],
)
def test_malformed_manifest_is_refused(data, text):
    with pytest.raises(BundleError, match=text):
        Manifest.from_dict(data)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
        max_leaves=8,
    )
)
def test_any_json_in_any_entry_gives_a_manifest_or_our_error(value):
    for name in GOOD:
        with contextlib.suppress(BundleError):  # anything else that is raised fails the test
            assert isinstance(Manifest.from_dict(changed(**{name: value})), Manifest)


def test_template_must_be_known():
    with pytest.raises(BundleError, match="unknown, expected one of"):
        check_template("pointwise", "{prompt}")
