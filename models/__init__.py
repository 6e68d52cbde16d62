"""The embedded reference model (``fsrm-tiny/``) and the recipe that made it.

===============  ====================================================================================
``problems``     word problems over small integers, made from a seed
``plans``        how an answer comes about step by step, and which wrong answer an error leads to
``responses``    right and wrong responses to a problem, and the judge's thoughts about them
``data``         training batches and held-out sets
``tokenizer``    the tokenizer, trained on the text of such problems
``train``        the first training, on written-in errors; ``muon`` is its optimizer, ``checks`` measures the
                 model on the way, ``plots`` draws its curves
``own_samples``  what the model itself writes, labelled and packed as training data
``rounds``       training on own samples, in rounds
``reinforce``    reinforcement of the slow verdict
``lists``        lists of own samples, from which the gate for the best of N is calibrated
``recipe``       all parts of the training and the release, one after the other
``release``      from a trained checkpoint to the embedded bundle; ``figures`` measures the finished model
===============  ====================================================================================

``recipes/`` is about other models, and holds data files: how public ones are asked (see ``fsrm_lite.export.recipes``).
"""
