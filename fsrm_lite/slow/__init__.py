"""Slow thinking: the judge writes chains of thought about a response or a pair, each with a verdict, and counts them.

From the outside in:

===============  ===================================================================================
``escalation``   the slow path as the scorer sees it: loads the judge when it is first needed, or does without
``judge``        what is asked, in which order and how often, and what the answers mean
``voting``       which votes to ask for next, when a pair is decided, what its votes say together
``worker``       where the engine runs: on a thread of this process, or in a child process
``child``        the child process as its parent sees it
``scheduler``    many texts written at once, one decoding step for all of them
``streams``      the state of the running texts as arrays
``sampling``     how the next token of each text is drawn
===============  ===================================================================================
"""
