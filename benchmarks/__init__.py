"""What ``make bench`` runs: the fast path and the judge, each measured beside its peers, all in one run.

A *peer* is another program, or another form of the same one, that does the same work. The weights are random, or those
of the embedded model, so no model is downloaded.
"""
