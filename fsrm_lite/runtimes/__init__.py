"""Where token ids become numbers: ONNX Runtime (``onnx``), llama.cpp (``llama``), and how many ``threads`` they take.

A runtime knows ids, logits and threads. It knows nothing of prompts, labels' values, scores, votes or gates: those are
the business of the two paths that stand on it, ``fsrm_lite.fast`` and ``fsrm_lite.slow``.
"""
