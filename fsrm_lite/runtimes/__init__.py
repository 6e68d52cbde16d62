"""The runtimes, which take token ids to numbers: ONNX Runtime (``onnx``) and llama.cpp (``llama``).

``reading`` is the protocol that both follow for the fast path, ``engine`` the one for writing. ``prefill`` reads
prompts into an engine, ``opening`` opens a file in the runtime that it is for, ``threads`` says how many threads they
use, ``owner`` is the thread that alone touches a model, and ``precedence`` says who computes first. A runtime knows
ids, logits and threads. Prompts, the values of labels, scores, votes and the gate are the business of the two paths
that use the runtimes, ``fsrm_lite.fast`` and ``fsrm_lite.slow``.
"""
