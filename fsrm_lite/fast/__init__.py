"""The fast path: a prompt and a response are read once, and the first token the model would say gives the score.

============  ==========================================================================================
``path``      the fast path as the scorer sees it: texts checked and turned into ids once, scores out
``readings``  from the runtime's reading to a score, and from two scores to a comparison
============  ==========================================================================================
"""
