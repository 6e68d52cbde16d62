"""The best of several responses: tournaments over fast scores and slow comparisons.

==============  =================================================================================
``order``       the order of responses that were scored one by one
``candidates``  which responses the fast path can read, and the scores they start with
``tournament``  which comparisons a strategy asks for, and what it concludes from them
``ratings``     Bradley-Terry ratings on the Elo scale, from the results of matches
``answers``     final answers from free text, so that answers can be counted and checked
==============  =================================================================================
"""
