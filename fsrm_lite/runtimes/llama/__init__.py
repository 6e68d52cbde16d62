"""The llama.cpp runtime: loads a GGUF model and decodes many sequences of tokens together.

===============  ===================================================================================
``engine``       the one module that imports llama_cpp: loading, quantizing, decoding, interrupting
``reader``       reads first-token distributions, for the fast path
``native``       llama.cpp's C structures over numpy memory, its tokenizer, how its import can fail
``gguf_header``  reads a GGUF file's header, so that a damaged file is an error and not an abort
===============  ===================================================================================
"""
