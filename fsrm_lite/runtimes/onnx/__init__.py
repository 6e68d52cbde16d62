"""ONNX Runtime: runs the fast graph that ``export/graph`` writes.

================  ====================================================================================
``session``       the loaded graph: sequences of ids in, one first-token reading per sequence out
``packing``       which tokens are computed together: shared prefixes, packed rows, chunks; no model
``prefix_cache``  keys and values of prefixes, kept for the next call within a bound of bytes
``kernels``       the compiled operators (C) that the graph uses where they were built
================  ====================================================================================
"""
