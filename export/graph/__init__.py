"""Checkpoint to the fast ONNX graph.

==============  ================================================================================
``fast_graph``  the whole graph, and why it is written here and not traced
``layers``      embedding, decoder layer, the reading at the end
``attention``   attention in fp32 or with int8 products
``linear``      linear maps, each in its own precision
``fused``       steps between the products, as functions with a compiled operator behind them
``writer``      ONNX nodes and weights, written as they come
``quantize``    weights of 8 and 4 bits in numpy
``weights``     what all of them need of a checkpoint
``rotation``    outliers spread over whole rows
``rounding``    weights rounded with an eye on what flows through them
``smoothing``   outlier channels moved out of the way of int8
``precision``   the precision of each MatMul, chosen by measurement
==============  ================================================================================
"""
