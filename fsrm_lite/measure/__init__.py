"""Measures a model and its gate on labelled data: chooses thresholds, and computes figures with intervals.

=========================  ===========================================================================
``calibration``            from labelled items to the gate's thresholds
``risk_control``           thresholds with a guarantee on the error rate of fast decisions
``list_calibration``       the same for the best of N; ``labelled_lists`` reads its lists and has them as arrays
``tradeoff``               accuracy against tokens for every pair of thresholds
``calibration_report``     the figures of a calibration; ``calibration_plots`` draws them
``evaluation``             runs a model over a benchmark; ``evaluation_records`` is its results file,
                           ``evaluation_report`` the figures made of it
``benchmark_formats``      reads the files of published benchmarks; ``benchmark_metrics`` has their metrics
``labelled``               labelled items as the statistics need them; ``labelled_rows`` reads them from files
``data_files``             rows of JSON, JSONL and CSV files
``metrics``, ``intervals``  the statistics themselves, with numpy alone
``conformance``            checks that another build's gate decides like this one
=========================  ===========================================================================
"""
