"""Measures whether an exported file decides like the checkpoint that it was made of; this is called *parity*.

=====================  =========================================================================
``calibration_pairs``  the prompts and responses that both are asked about
``readings``           what is compared: first-token readings and chains of thought
``reference``          asks the checkpoint itself, in float32 through transformers
``engine_reader``      asks an exported file, through the engine that the judge uses
``measures``           the figures, the tolerances, and what violates them
``chains``             chooses what to think about, and compares the chains of both
=====================  =========================================================================
"""
