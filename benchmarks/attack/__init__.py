"""Attacks on the package: kills, forks, damaged files and hostile texts, with seeds, in bounded time.

``python -m benchmarks.attack`` (``make attack``) runs all of them and prints what was tried, how often, and what was
found. The functions of its modules are the attacks, and each returns an ``Outcome``.

=============  ========================================================================================
``bulk``       kills bulk runs at random moments and lets them go on
``bundles``    damages bundles and their files and opens them
``texts``      puts hostile texts through every template
``processes``  forks, programs that end in mid-thought, kills of the judge, memory
``outcome``    what an attack found, and how it is printed
=============  ========================================================================================
"""
