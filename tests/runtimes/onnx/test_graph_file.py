"""What a stranger's graph may name: no file that its bundle does not list, no loop; and what it must say of itself."""

import re

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from fsrm_lite.bundle.files import Bundle, write_manifest
from fsrm_lite.errors import BundleError
from fsrm_lite.runtimes.onnx.graph_file import check_graph_file
from fsrm_lite.runtimes.onnx.session import FastModel
from fsrm_lite.scorer import FastSlowRM

EMBEDDED = Bundle.open().path("fast")


def outside(name, location):
    """A tensor whose data lie in another file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="location", value=location)
    return tensor


def graph_with(*nodes, tensors=()):
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    return helper.make_graph([*nodes], "g", inputs, outputs, [*tensors])


def branch(*nodes, tensors=()):
    return helper.make_graph(
        [*nodes], "inner", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)], [*tensors]
    )


LOOP = helper.make_node("Loop", ["n", "c"], ["z"], body=branch())
PLACES = {
    "weight": lambda t, n: helper.make_model(graph_with(n, tensors=[t])),
    "constant": lambda t, n: helper.make_model(graph_with(helper.make_node("Constant", [], ["c"], value=t), n)),
    "branch": lambda t, n: helper.make_model(
        graph_with(helper.make_node("If", ["c"], ["y"], then_branch=branch(n, tensors=[t]), else_branch=branch()))
    ),
    "function": lambda t, n: helper.make_model(
        graph_with(),
        functions=[
            helper.make_function(
                "d", "f", [], ["c"], [helper.make_node("Constant", [], ["c"], value=t), n],
                [helper.make_opsetid("", 21)],
            )
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_weights_in_a_file_that_is_not_listed_are_refused_wherever_they_are_named(tmp_path, place):
    path = tmp_path / "model.onnx"
    path.write_bytes(
        PLACES[place](outside("w", "sub/../other.data"), helper.make_node("Neg", ["x"], ["y"])).SerializeToString()
    )
    for listed in (None, "model.onnx.data"):
        with pytest.raises(BundleError, match=r"weights from the file 'sub/\.\./other\.data', which fsrm\.json does"):
            check_graph_file(path, listed)
    check_graph_file(path, "sub/../other.data")


@pytest.mark.parametrize("place", PLACES)
def test_a_loop_is_refused_wherever_it_is(tmp_path, place):
    path = tmp_path / "model.onnx"
    weight = numpy_helper.from_array(np.zeros(2, np.float32), "w")
    path.write_bytes(PLACES[place](weight, LOOP).SerializeToString())
    with pytest.raises(BundleError, match="has the operator Loop, which may run without end"):
        check_graph_file(path, None)


def test_the_embedded_graph_passes_and_words_within_its_names_are_no_loops(tmp_path):
    check_graph_file(EMBEDDED, None)
    model = onnx.load(EMBEDDED)
    model.doc_string = 'location "\x04Loop Scan'
    onnx.save(model, tmp_path / "model.onnx")
    check_graph_file(tmp_path / "model.onnx", None)


@given(st.integers(0, 10**9), st.binary(min_size=1, max_size=8), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_damaged_graph_is_our_error_or_none(tmp_path_factory, at, new, cut):
    model = PLACES["branch"](outside("w", "a.data"), LOOP).SerializeToString()
    at %= len(model)
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    path.write_bytes(model[:at] + new + (b"" if cut else model[at + len(new) :]))
    try:
        check_graph_file(path, None)
    except BundleError as error:
        assert re.search("not an ONNX model|takes weights|Loop", str(error))  # noqa: PT017 - not every one is found


def test_a_file_beside_the_graph_cannot_be_exchanged_unnoticed(tmp_path, rm):
    """The manifest lists every byte that a score depends on."""
    import shutil

    copy = tmp_path / "bundle"
    shutil.copytree(rm.bundle.root, copy)
    graph = onnx.load(copy / "fast/model.onnx")
    onnx.save_model(graph, copy / "fast/model.onnx", save_as_external_data=True, location="w.data", size_threshold=1024)
    files = {role: entry.path for role, entry in rm.bundle.manifest.files.items()}
    write_manifest(copy, rm.bundle.manifest, files)
    with pytest.raises(BundleError, match=r"takes weights from the file 'w\.data', which fsrm\.json does not list"):
        FastSlowRM.from_pretrained(copy, threads=1)
    write_manifest(copy, rm.bundle.manifest, {**files, "fast_data": "fast/w.data"})
    with FastSlowRM.from_pretrained(copy, threads=1) as model:
        assert 0 < model.score("What is 2 + 3?", "5", judge="never").score < 1
    data = bytearray((copy / "fast/w.data").read_bytes())
    data[1000] ^= 1
    (copy / "fast/w.data").write_bytes(data)
    with pytest.raises(BundleError, match="was altered"):
        FastSlowRM.from_pretrained(copy, threads=1)


def changed(tmp_path, change):
    model = onnx.load(EMBEDDED)
    change(model)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    return path


def metadata(name, value):
    def change(model):
        kept = [(p.key, p.value) for p in model.metadata_props if p.key != name]
        del model.metadata_props[:]
        for key, text in [*kept, *([] if value is None else [(name, value)])]:
            model.metadata_props.add(key=key, value=text)

    return change


@pytest.mark.parametrize("name", ["fsrm.chunk", "fsrm.row", "fsrm.vocab_size", "fsrm.hidden_size"])
@pytest.mark.parametrize("value", [None, "", "0", "-1", "1.5", "many", "9" * 5000, "99999999", "٣"])
def test_a_size_out_of_range_is_refused_before_anything_is_run(tmp_path, name, value):
    with pytest.raises(BundleError, match=f"its {name} is .*, expected a whole number from 1 to"):
        FastModel(changed(tmp_path, metadata(name, value)), threads=1)


@pytest.mark.parametrize("value", [None, "", "[", "[" * 100_000, "9" * 5000])
def test_labels_that_are_no_json_are_refused(tmp_path, value):
    with pytest.raises(BundleError):
        FastModel(changed(tmp_path, metadata("fsrm.labels", value)), threads=1)


def renamed_input(model):
    for value in model.graph.input:
        if value.name == "bias":
            value.name = "bias2"
    for node in model.graph.node:
        node.input[:] = ["bias2" if name == "bias" else name for name in node.input]


def another_input(model):
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))


def lost_output(model):
    kept = [value for value in model.graph.output if value.name != "entropy"]
    del model.graph.output[:]
    model.graph.output.extend(kept)


def fixed_past(model):
    for value in model.graph.input:
        if value.name.startswith("past_"):
            for dimension in value.type.tensor_type.shape.dim:
                if dimension.dim_param == "P":
                    dimension.dim_value = 3


@pytest.mark.parametrize("change", [renamed_input, another_input, lost_output, fixed_past])
def test_other_inputs_and_outputs_are_refused(tmp_path, change):
    with pytest.raises(BundleError):
        FastModel(changed(tmp_path, change), threads=1)
