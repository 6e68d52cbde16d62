r"""Checkpoint to bundle (extra ``[export]``).

The fast graph is written node by node (``graph.py``), not traced by optimum-onnx nor built by onnxruntime-genai: the
first pins transformers below 5 and computes the logits of the whole vocabulary at every position, the second fixes
an interface that cannot pack candidates behind a shared prefix, and neither gives row-wise int8 or a precision per
MatMul. Four dense architectures differ in few places, so the writer is small, and ``parity.py`` measures every file
it writes against the checkpoint. The GGUF is written through the ``gguf`` library and quantized by llama.cpp itself.

Beside the weights the trainer leaves a fragment, ``fsrm.json`` in the checkpoint folder (or ``--spec``)::

    {"name": "my-rm", "license": "apache-2.0",
     "labels": [{"text": "Yes", "value": 1}, {"text": "No", "value": 0}],        first tokens of the fast answer
     "templates": {"pointwise_fast": {"text": "... {prompt} ... {response} ..."},
                   "pairwise_slow": {"text": "... {prompt} ... {response_a} ... {response_b} ...",
                                     "verdict": {"close": "</think>\n\n", "prefix": "\\boxed{Assistant ",
                                                 "choices": ["1", "2"], "suffix": "}"}},
                   "pointwise_slow": {..., "verdict": {..., "choices": ["Yes", "No"], "values": [1, 0]}}},
     "stop": ["<|im_end|>"],                                                    default: the tokenizer's eos
     "special_tokens": [...],                                                   default: added tokens that templates use
     "limits": {"context": 4096, "thinking_tokens": 1024}, "gate": {...}, "judge": {...}}

Words become token ids here, in the context they will stand in, or the export fails. ``models/spec.json`` is a whole
one.

``export_checkpoint`` is the way in. It is imported on first use, so that a part of this package can be used without
the dependencies of the others: the GGUF writer needs ``gguf``, the fast graph ``onnx``, parity torch and transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fsrm_lite.export.pipeline import export_checkpoint as export_checkpoint

__all__ = ["export_checkpoint"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module attribute can be anything
    if name == "export_checkpoint":
        from fsrm_lite.export.pipeline import export_checkpoint

        return export_checkpoint
    raise AttributeError(f"module 'fsrm_lite.export' has no attribute {name!r}")
