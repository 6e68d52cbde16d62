"""ONNX Runtime: runs the fast graph that ``export/graph`` writes.

================  ====================================================================================
``graph``         the opened graph, which the next two share
``session``       reads with it: sequences of ids in, one first-token reading per sequence out
``encoder``       reads rewards with another kind of graph, that of an encoder with one output
``engine``        writes with it: streams of tokens, and what follows each of them
``pools``         the keys and values of these streams: in place, or joined anew in every run
``cells``         which cells of a pool hold the tokens of each stream; no model
``graph_file``    what the graph's file names before it is opened: further files, loops
``packing``       which tokens are computed together: shared prefixes, packed rows, chunks; no model
``prefix_cache``  keys and values of prefixes, kept for the next call within a bound of bytes
``kernels``       the compiled operators (C) that the graph uses where they were built
================  ====================================================================================
"""
