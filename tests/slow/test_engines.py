import itertools
import json
import shutil

import pytest

from fsrm_lite import FastSlowRM
from fsrm_lite.errors import BundleError, JudgeUnavailableError
from fsrm_lite.slow.engines import SMALL_GGUF, choose_engine

MISSING = "llama-cpp-python is not installed"


def chosen(asked, graph, gguf_bytes, missing):
    try:
        return choose_engine(
            asked, can_think=graph, gguf_bytes=gguf_bytes, why_no_llama=lambda: MISSING if missing else None
        ).engine
    except (BundleError, JudgeUnavailableError) as error:
        return type(error)


def test_every_combination_has_one_answer():
    sizes = (None, SMALL_GGUF - 1, SMALL_GGUF)
    for graph, gguf, missing in itertools.product((True, False), sizes, (True, False)):
        usable = gguf is not None and not missing
        without = BundleError if gguf is None else JudgeUnavailableError
        assert chosen("onnx", graph, gguf, missing) == ("onnx" if graph else BundleError)
        assert chosen("llama.cpp", graph, gguf, missing) == ("llama.cpp" if usable else without)
        small = gguf is not None and gguf < SMALL_GGUF
        expected = "llama.cpp" if usable and (small or not graph) else "onnx" if graph else without
        assert chosen("auto", graph, gguf, missing) == expected


def test_llama_is_not_tried_where_it_does_not_matter():
    def never():
        raise AssertionError("this may take a second")

    assert choose_engine("onnx", can_think=True, gguf_bytes=1, why_no_llama=never).why == "asked for"
    assert choose_engine("auto", can_think=True, gguf_bytes=None, why_no_llama=never).engine == "onnx"
    large = choose_engine("auto", can_think=True, gguf_bytes=SMALL_GGUF, why_no_llama=never)
    assert (large.engine, large.why) == ("onnx", "faster with a model of this size")


@pytest.mark.parametrize("size", [None, SMALL_GGUF])
def test_a_gguf_that_is_not_needed_is_not_touched(rm, tmp_path, size):
    shutil.copytree(rm.bundle.root, tmp_path / "copy")
    (tmp_path / "copy" / "slow" / "model.gguf").unlink()
    if size is not None:
        manifest = json.loads((tmp_path / "copy" / "fsrm.json").read_text())
        manifest["files"]["slow"]["bytes"] = size
        (tmp_path / "copy" / "fsrm.json").write_text(json.dumps(manifest))
    asked = "onnx" if size is None else "auto"
    with FastSlowRM.from_pretrained(tmp_path / "copy", judge_engine=asked) as model:
        assert model.judge_engine.engine == "onnx"
        assert model.compare("1 + 1?", "3", "2", judge="always").votes


@pytest.mark.parametrize(("graph", "advice"), [(True, "judge_engine='onnx'"), (False, "export it again")])
def test_a_bundle_without_a_gguf_says_what_to_do(graph, advice):
    with pytest.raises(BundleError, match=advice):
        choose_engine("llama.cpp", can_think=graph, gguf_bytes=None, why_no_llama=lambda: None)
