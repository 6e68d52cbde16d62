"""A model that is loaded when it is first needed."""

import pickle

from helpers.loops import FakeRM

from fsrm_lite.integrations.loading import LazyModel


def test_lazy_model_loads_once_and_only_when_needed(fake_loading):
    lazy = LazyModel("some/folder", threads=2)
    assert fake_loading == []
    assert lazy.model is lazy.model
    assert fake_loading == [("some/folder", {"threads": 2})]


def test_lazy_model_pickles_without_the_model(fake_loading):
    copy = pickle.loads(pickle.dumps(LazyModel(FakeRM())))
    assert copy.model.bundle.root == "/bundle"
    assert fake_loading == [("/bundle", {})]
