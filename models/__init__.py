"""The embedded reference model (``fsrm-tiny/``) and the recipe that made it.

==============  =====================================================================================
``problems``    word problems over small integers, made from a seed
``plans``       how an answer comes about step by step, and what goes wrong when a step fails
``responses``   right and wrong responses to a problem, and the judge's thoughts about them
``data``        training batches and held-out sets
``tokenizer``   the tokenizer, trained on the domain's own text
``train``       the training itself; ``checks`` are its figures on the way, ``plots`` its curves
``release``     from a trained checkpoint to the embedded bundle; ``figures`` measures what it is worth
==============  =====================================================================================
"""
