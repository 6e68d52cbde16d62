"""Does an exported file decide like the checkpoint?

=====================  =========================================================================
``calibration_pairs``  the prompts and responses on which it is asked
``readings``           what is compared: first-token readings and chains of thought
``reference``          the checkpoint itself, in float32 through transformers
``measures``           the figures, the tolerances, and what violates them
``chains``             greedy chains of thought, the same way from both sides
=====================  =========================================================================
"""
