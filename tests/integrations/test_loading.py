"""A model that is loaded when it is first needed, and the text of completions in every form."""

import pickle

import pytest
from helpers.loops import FakeRM

from fsrm_lite.errors import InputError
from fsrm_lite.integrations.loading import LazyModel, text_of


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
