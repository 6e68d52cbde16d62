"""Thin adapters to the shapes that other libraries call; each imports its partner only when it is used.

=================  ==================================================================================
``loading``        a model that is loaded when it is first needed, and that travels to other processes
``trl``            TRL: a reward function for its trainers, and the shape of its pairwise judges
``cross_encoder``  sentence-transformers: ``predict`` and ``rank`` as its ``CrossEncoder`` has them
``scaling``        its_hub's outcome reward model, lm-eval's filter
``http``           another name of ``fsrm_lite.serve.http``
=================  ==================================================================================
"""
