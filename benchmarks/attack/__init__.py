"""Attacks on the package: kills, forks, damaged files and hostile texts, with seeds, in bounded time.

``python -m benchmarks.attack`` (``make attack``) runs all of them and prints what was tried, how often, and what was
found. Each module is one attack with a function ``run`` that returns an ``Outcome``.

===========  ==========================================================================================
``bulk``     kills bulk runs at random moments and lets them go on
===========  ==========================================================================================
"""
