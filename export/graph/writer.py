"""Writes an ONNX model node by node; knows nothing of language models.

Values are plain strings (ONNX names). Weights beyond what a protobuf can hold go to one data file beside the model,
written as they come, so that no more than one of them is in memory. Graphs that differ in the precision of a few
weights share a store: what one has made, the next finds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 23
"""First ONNX opset with ``Attention`` and ``RotaryEmbedding``."""

MICROSOFT = "com.microsoft"
FSRM = "fsrm.2"
"""Domain of the graph's own functions; fsrm_lite/runtimes/onnx/kernels has compiled operators for them.

The number changes with the meaning of any of them, there and here: a compiled operator takes the place of a function of
its name, whatever the function's body says.
"""

_OPSETS = {"": OPSET, MICROSOFT: 1}
INLINE_LIMIT_BYTES = 200_000_000
"""Above this the weights go to a data file, which ONNX Runtime maps; inside the model they would be in memory twice."""

_ALIGNMENT = 4096
_COPY_BYTES = 16 << 20
_SMALL_BYTES = 1024  # Constants below this stay inside the model even when weights do not.


class WeightStore:
    """Weights by name, each made and stored once, whatever number of graphs uses it.

    Args:
        path: The data file, beside the graphs; None puts the weights into the graphs themselves.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._end = 0
        self._tensors: dict[str, TensorProto] = {}

    def get(self, names: Sequence[str], make: Callable[[], Sequence[NDArray[Any]]]) -> list[TensorProto]:
        """Return the initializers called ``names``; ``make`` gives their values where they are not stored yet."""
        if any(name not in self._tensors for name in names):
            self._tensors |= {name: self._store(name, array) for name, array in zip(names, make(), strict=True)}
        return [self._tensors[name] for name in names]

    def _store(self, name: str, array: NDArray[Any]) -> TensorProto:
        array = np.asarray(array, order="C")  # ascontiguousarray would give a scalar one dimension
        if self.path is None or array.nbytes < _SMALL_BYTES:
            return numpy_helper.from_array(array, name)
        with self.path.open("ab" if self._end else "wb") as file:
            padding = -self._end % _ALIGNMENT
            file.write(b"\0" * padding)
            file.flush()
            array.tofile(file)
        tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape)
        tensor.data_location = TensorProto.EXTERNAL
        _place(tensor, location=self.path.name, offset=self._end + padding, length=array.nbytes)
        self._end += padding + array.nbytes
        return tensor


def _place(tensor: TensorProto, **entries: str | int) -> None:
    del tensor.external_data[:]
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))


def drop_unused(path: Path) -> None:
    """Shrink the data file beside a model to what that model uses, in place."""
    data = path.with_name(path.name + ".data")
    model = onnx.load(path, load_external_data=False)
    used = {int(entries["offset"]): (tensor, int(entries["length"])) for tensor, entries in _external(model)}
    end = 0
    with data.open("r+b") as file:
        for offset, (tensor, length) in sorted(used.items()):
            start = end + -end % _ALIGNMENT
            _place(tensor, location=data.name, offset=start, length=length)
            end = start + length
            # Never to a later place than it comes from, so going up overwrites nothing that is still needed.
            for done in range(0, length if start < offset else 0, _COPY_BYTES):
                file.seek(offset + done)
                piece = file.read(min(_COPY_BYTES, length - done))
                file.seek(start + done)
                file.write(piece)
        file.truncate(end)
    path.write_bytes(model.SerializeToString())


def add_metadata(path: Path, key: str, text: str) -> None:
    """Write an entry into the metadata of a model that is saved already. Weights beside it are not touched."""
    model = onnx.load(path, load_external_data=False)
    model.metadata_props.add(key=key, value=text)
    path.write_bytes(model.SerializeToString())


def _external(model: onnx.ModelProto) -> Iterator[tuple[TensorProto, dict[str, str]]]:
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            yield tensor, {entry.key: entry.value for entry in tensor.external_data}


def _with_branches(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield nodes and those of the branches within them."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            yield from _with_branches(attribute.g.node)


class GraphWriter:
    """Collects nodes, constants and weights, then saves the model.

    Args:
        path: The ``.onnx`` file to write.
        weights: Where the weights are stored.
    """

    def __init__(self, path: Path, weights: WeightStore) -> None:
        self._path = path
        self._weights = weights
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._count = 0
        self._constants: dict[tuple[str, bytes, tuple[int, ...]], str] = {}
        self._functions: dict[str, onnx.FunctionProto] = {}
        self._attributes: dict[str, dict[str, Any]] = {}
        self._in_function = False
        self.scope = "model"
        """Prefix of the names of new nodes; a profile shows them."""

    def add(self, op: str, inputs: Sequence[str], *, domain: str = "", outputs: int = 1, **attributes: Any) -> str:  # noqa: ANN401
        """Add a node and return the name of its first output; see :meth:`add_many` for several."""
        return self.add_many(op, inputs, [True] + [False] * (outputs - 1), domain=domain, **attributes)[0]

    def add_many(
        self,
        op: str,
        inputs: Sequence[str],
        wanted: Sequence[bool],
        *,
        domain: str = "",
        **attributes: Any,  # noqa: ANN401
    ) -> list[str]:
        """Add a node with several outputs; those not ``wanted`` get the empty name."""
        node = f"{self.scope}/{op}_{self._count}"
        self._count += 1
        names = [(f"{node}:{i}" if keep else "") for i, keep in enumerate(wanted)]
        while names and not names[-1]:
            names.pop()
        self._nodes.append(helper.make_node(op, list(inputs), names, name=node, domain=domain, **attributes))
        return names

    @contextmanager
    def branch(self) -> Iterator[list[onnx.NodeProto]]:
        """Collect the nodes added inside the ``with`` block into the list it gives, for :meth:`choose`."""
        outer, self._nodes = self._nodes, []
        try:
            yield self._nodes
        finally:
            self._nodes = outer

    def choose(
        self, condition: str, branches: Sequence[tuple[list[onnx.NodeProto], Sequence[str]]], dtypes: Sequence[int]
    ) -> list[str]:
        """Add an ``If``: the values of the first branch where ``condition``, else those of the second."""
        names = ("then_branch", "else_branch")
        bodies = {
            name: helper.make_graph(
                nodes,
                name,
                [],
                [
                    helper.make_tensor_value_info(value, dtype, None)
                    for value, dtype in zip(values, dtypes, strict=True)
                ],
            )
            for name, (nodes, values) in zip(names, branches, strict=True)
        }
        return self.add_many("If", [condition], [True] * len(branches[0][1]), **bodies)

    def call(
        self,
        function: str,
        inputs: Sequence[str],
        build: Callable[..., Sequence[str]],
        outputs: int,
        **attributes: Any,  # noqa: ANN401
    ) -> list[str]:
        """Add a call of a function and return the names of its outputs.

        ``build`` adds the function's body for the names of its parameters and returns those of its results; it runs for
        the first call only, so all calls of one name must mean the same. The body takes weights as parameters.
        """
        if self._attributes.setdefault(function, attributes) != attributes:
            raise ValueError(
                f"{function} was called with {self._attributes[function]} before, now with {attributes}: its body "
                "knows only the former"
            )
        if function not in self._functions:
            self._functions[function] = self._define(
                function, [f"parameter_{i}" for i in range(len(inputs))], build, list(attributes)
            )
        return self.add_many(function, inputs, [True] * outputs, domain=FSRM, **attributes)

    def _define(
        self, name: str, parameters: list[str], build: Callable[..., Sequence[str]], attributes: list[str]
    ) -> onnx.FunctionProto:
        outer = self._nodes, self._constants
        self._nodes, self._constants, self._in_function = [], {}, True
        try:
            results = build(*parameters)
            opsets = [helper.make_opsetid(*opset) for opset in _OPSETS.items()]
            return helper.make_function(FSRM, name, parameters, list(results), self._nodes, opsets, attributes)
        finally:
            self._nodes, self._constants, self._in_function = *outer, False

    def constant(self, value: Any, dtype: type[np.generic]) -> str:  # noqa: ANN401
        """Return the name of a small constant; equal constants are stored once."""
        array = np.asarray(value, dtype=dtype)
        key = (array.dtype.str, array.tobytes(), array.shape)
        if key not in self._constants and self._in_function:
            self._constants[key] = self.add("Constant", [], value=numpy_helper.from_array(array))
        elif key not in self._constants:
            self._constants[key] = f"constant_{len(self._constants)}"
            self._initializers.append(numpy_helper.from_array(array, self._constants[key]))
        return self._constants[key]

    def weight(self, name: str, make: Callable[[], NDArray[Any]]) -> str:
        """Use the weight ``name`` of the store, made if need be, and return the name."""
        return self.weights([name], lambda: [make()])[0]

    def weights(self, names: Sequence[str], make: Callable[[], Sequence[NDArray[Any]]]) -> list[str]:
        """Use several weights that are made together, and return their names."""
        used = {tensor.name for tensor in self._initializers}
        self._initializers += [tensor for tensor in self._weights.get(names, make) if tensor.name not in used]
        return list(names)

    def input(self, name: str, dtype: int, shape: Sequence[int | str]) -> str:
        """Declare a graph input."""
        self._inputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))
        return name

    def output(self, name: str, value: str, dtype: int, shape: Sequence[int | str]) -> None:
        """Declare ``value`` as the graph output ``name``; it is renamed, since an Identity node would copy it."""
        for node in _with_branches(self._nodes):
            for names in (node.input, node.output):
                names[:] = [name if n == value else n for n in names]
        self._outputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))

    def save(self, metadata: dict[str, str]) -> None:
        """Write the model file, with ``metadata`` as its metadata_props."""
        graph = helper.make_graph(self._nodes, "fsrm-fast", self._inputs, self._outputs, self._initializers)
        opsets = [helper.make_opsetid(*opset) for opset in (_OPSETS | {FSRM: 1}).items()]
        functions = list(self._functions.values())
        model = helper.make_model(
            graph, functions=functions, opset_imports=opsets, ir_version=11, producer_name="fsrm-lite"
        )
        helper.set_model_props(model, metadata)
        self._path.write_bytes(model.SerializeToString())
