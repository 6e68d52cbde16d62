"""The slow path: the judge writes thoughts about a response or a pair, each with a verdict, and counts the verdicts.

A *thought* is a chain of thought; a thought with its verdict about a pair is a *vote*. From the outside in:

===============  ===================================================================================
``escalation``   the slow path as the scorer sees it: loads the judge when needed, or does without
``engines``      which runtime the judge thinks with
``judge``        what is asked, in which order and how often, and what the answers mean
``voting``       which votes to ask for next, when a pair is decided, what its votes say together
``worker``       where the engine runs: on a thread of this process, or in a child process
``child``        the child process as its parent sees it
``scheduler``    many texts written at once, one decoding step for all of them
``streams``      the state of the texts being written, as arrays
``verdicts``     where a thought ends in a text, and the verdict behind it
``sampling``     how the next token of each text is drawn
===============  ===================================================================================

``read_verdict`` reads the verdict in a text that another engine wrote, by the judge's own rules.
"""

from fsrm_lite.slow.verdicts import WrittenVerdict, read_verdict

__all__ = ["WrittenVerdict", "read_verdict"]
