"""GGUF, the file format of llama.cpp, in which a bundle holds its judge.

``writer`` writes a checkpoint as a GGUF file, and ``checkpoint`` makes a checkpoint of such a file again.
"""
