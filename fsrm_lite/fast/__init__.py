"""The fast path: a prompt and a response are read once, and the prediction of the first answer token gives the score.

============  ==========================================================================================
``path``      the fast path as the scorer sees it: checks texts and turns them into ids, returns scores
``readings``  makes a score of what the runtime read, and a comparison of two scores
============  ==========================================================================================
"""
