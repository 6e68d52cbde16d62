import itertools
import shutil

import pytest

from fsrm_lite import FastSlowRM
from fsrm_lite.errors import BundleError, JudgeUnavailableError
from fsrm_lite.slow.engines import choose_engine

MISSING = "llama-cpp-python is not installed"


def chosen(asked, graph, in_place, gguf, missing):
    try:
        return choose_engine(
            asked,
            can_think=graph,
            in_place=in_place,
            has_gguf=gguf,
            why_no_llama=lambda: MISSING if missing else None,
        ).engine
    except (BundleError, JudgeUnavailableError) as error:
        return type(error)


def test_every_combination_has_one_answer():
    for graph, in_place, gguf, missing in itertools.product((True, False), repeat=4):
        usable = gguf and not missing
        without = BundleError if not gguf else JudgeUnavailableError
        assert chosen("onnx", graph, in_place, gguf, missing) == ("onnx" if graph else BundleError)
        assert chosen("llama.cpp", graph, in_place, gguf, missing) == ("llama.cpp" if usable else without)
        faster = graph and in_place
        expected = "llama.cpp" if usable and not faster else "onnx" if graph else without
        assert chosen("auto", graph, in_place, gguf, missing) == expected


def test_llama_is_not_tried_where_it_does_not_matter():
    def never():
        raise AssertionError("this may take a second")

    assert choose_engine("onnx", can_think=True, in_place=True, has_gguf=True, why_no_llama=never).why == "asked for"
    for in_place in (True, False):
        made = choose_engine("auto", can_think=True, in_place=in_place, has_gguf=in_place, why_no_llama=never)
        assert made.engine == "onnx"


def test_a_gguf_that_is_not_needed_is_not_touched(rm, tmp_path):
    shutil.copytree(rm.bundle.root, tmp_path / "copy")
    (tmp_path / "copy" / "slow" / "model.gguf").unlink()
    with FastSlowRM.from_pretrained(tmp_path / "copy", judge_engine="onnx") as model:
        assert model.judge_engine.engine == "onnx"
        assert model.compare("1 + 1?", "3", "2", judge="always").votes


@pytest.mark.parametrize(("graph", "advice"), [(True, "judge_engine='onnx'"), (False, "export it again")])
def test_a_bundle_without_a_gguf_says_what_to_do(graph, advice):
    with pytest.raises(BundleError, match=advice):
        choose_engine("llama.cpp", can_think=graph, in_place=False, has_gguf=False, why_no_llama=lambda: None)
