"""Where token ids become numbers: ONNX Runtime (``onnx``) and llama.cpp (``llama``).

A runtime knows ids, logits and threads. It knows nothing of prompts, labels' values, scores, votes or gates: those are
the business of the two paths that stand on it, ``fsrm_lite.fast`` and ``fsrm_lite.slow``.
"""
