"""Adapters, by which other libraries use a reward model through the classes and functions that they expect.

None of these libraries has to be installed for the adapters to be imported.

=================  ==================================================================================
``loading``        a model that is loaded when it is first needed, and can be sent to other processes
``trl``            TRL: a reward function for its trainers, and a judge of pairs
``cross_encoder``  sentence-transformers: ``predict`` and ``rank`` as its ``CrossEncoder`` has them
``ray``            Ray: batches of a dataset, and files, scored on many machines
``scaling``        its_hub's outcome reward model, lm-eval's filter
``http``           another name of ``fsrm_lite.serve.server``
=================  ==================================================================================
"""
