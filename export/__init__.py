r"""Turns a checkpoint into a bundle. Needs the extra ``[export]``.

A *checkpoint* is a model as its trainer saves it: a folder in the form of Hugging Face's libraries. A *bundle* is the
folder that this package loads. It holds the model twice: as an ONNX graph, which gives the fast score, and as a GGUF
file (llama.cpp's format), with which the judge thinks.

=====================  ==============================================================================
``pipeline``           the whole export, one stage after the other
``plan``               what is read and decided before anything is computed
``halves``             the export of two models as one bundle, one for each path
``stages``             the stages that do the work
``checkpoints``        reads the trainer's folder
``graph``              writes the fast ONNX graph
``gguf``               writes the judge's GGUF file; makes a bundle of a GGUF file
``encoders``           makes a bundle of an encoder that optimum exported
``parity``             measures whether an exported file decides like the checkpoint
``card``               writes the model card and the parity table
``golden``             notes examples with their scores
``finish``             the manifest and the card of a bundle that has its files
``folders``            lets a bundle appear whole or not at all
``recipes``            how public models are asked, and which of them fits a checkpoint
``hub``                fetches a checkpoint, uploads a finished bundle
``callback``           exports from a trainer, while it trains or at the end
``critic_head``        fits a critic on what the model reads of answers; its weights stay as they are
=====================  ==============================================================================

The fast graph is written node by node (``graph/``). It is not traced by optimum-onnx, which pins transformers below 5
and computes the logits of the whole vocabulary at every position. Nor is it built by onnxruntime-genai, which fixes an
interface that cannot pack candidates behind a shared prefix. Neither of the two gives int8 with a scale per row, or a
precision of its own to each MatMul. The four dense architectures that are supported differ in few places, so the writer
is small, and ``parity/`` measures every file that it writes against the checkpoint. The GGUF file is written through
the ``gguf`` library and quantized by llama.cpp itself.

For public models, and for any model with a chat template, a *recipe* comes with the package, and nothing need be
written. A model with a prompt of its own needs a *fragment* of the bundle's manifest, the file that says what the model
is and how it is asked. It is ``fsrm.json`` in the checkpoint folder, or the file that ``--spec`` names::

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

A model that chooses from a pair at once has the template ``pairwise_fast`` and ``"pair_labels": ["A", "B"]``. In place
of ``"text"`` a template may have ``"messages": [{"role": "user", "content": "... {prompt} ..."}]``: the checkpoint's
chat template then writes them, followed by ``"answer"``, the beginning of the model's answer. A model with a scalar
head needs no labels; its template is as a rule ``{conversation}``, the messages and the response as the chat template
writes them.

The export replaces each word by the id of its token, read in the text in which the word will stand. If a word is not a
single token there, the export fails. ``models/spec.json`` is a complete example.

Start with ``export_checkpoint``. It is imported on first use, so that a part of this package can be used without the
dependencies of the others: the GGUF writer needs ``gguf``, the fast graph ``onnx``, parity torch and transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fsrm_lite.export.callback import ExportCallback as ExportCallback
    from fsrm_lite.export.pipeline import export_checkpoint as export_checkpoint

__all__ = ["ExportCallback", "export_checkpoint"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module attribute can be anything
    if name == "export_checkpoint":
        from fsrm_lite.export.pipeline import export_checkpoint

        return export_checkpoint
    if name == "ExportCallback":
        from fsrm_lite.export.callback import ExportCallback

        return ExportCallback
    raise AttributeError(f"module 'fsrm_lite.export' has no attribute {name!r}")
