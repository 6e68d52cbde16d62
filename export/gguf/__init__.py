"""GGUF, the file format of llama.cpp, in which a bundle holds its judge, or its one model.

``writer`` writes a checkpoint as a GGUF file, and ``checkpoint`` makes a checkpoint of such a file again. ``bundle``
makes a bundle of one as it is, with what ``tokenizer`` makes of its tokens.
"""
