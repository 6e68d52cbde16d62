"""Peak rates of ONNX Runtime's own matrix products: what no graph on it can beat."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

_SECONDS = 0.1  # Spent on each product.


def gemm_sessions(
    rows: Sequence[int], shapes: Sequence[tuple[int, int]], threads: int
) -> dict[tuple[str, int, int, int], tuple[Any, Any]]:
    """Return a session and its input for each (kind, rows, in, out).

    Kinds are "int8" (MatMulInteger) and "fp32" (MatMul).
    """
    import onnxruntime

    rng = np.random.default_rng(0)
    sessions: dict[tuple[str, int, int, int], tuple[Any, Any]] = {}
    for kind, op, left, right, result in (
        ("int8", "MatMulInteger", TensorProto.UINT8, np.uint8, TensorProto.INT32),
        ("fp32", "MatMul", TensorProto.FLOAT, np.float32, TensorProto.FLOAT),
    ):
        for m in rows:
            for k, n in shapes:
                weight = rng.integers(0, 127, (k, n)).astype(right)
                graph = helper.make_graph(
                    [helper.make_node(op, ["a", "b"], ["c"])],
                    "gemm",
                    [helper.make_tensor_value_info("a", left, [m, k])],
                    [helper.make_tensor_value_info("c", result, [m, n])],
                    [numpy_helper.from_array(weight, "b")],
                )
                model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
                options = onnxruntime.SessionOptions()
                options.intra_op_num_threads = threads
                options.log_severity_level = 4
                session = onnxruntime.InferenceSession(
                    model.SerializeToString(), options, providers=["CPUExecutionProvider"]
                )
                a = rng.integers(0, 255, (m, k)).astype(helper.tensor_dtype_to_np_dtype(left))
                sessions[kind, m, k, n] = (session, a)
    return sessions


def best_rate(sessions: dict[tuple[str, int, int, int], tuple[Any, Any]], kind: str) -> float:
    """Return the best rate of ``kind`` over all shapes, in operations per second (a multiply and an add are two)."""
    best = 0.0
    for (name, m, k, n), (session, a) in sessions.items():
        if name != kind:
            continue
        end = perf_counter() + _SECONDS
        while perf_counter() < end:
            start = perf_counter()
            session.run(None, {"a": a})
            best = max(best, 2 * m * k * n / (perf_counter() - start))
    return best
