"""Measures a model and its gate on labelled data: chooses thresholds, and computes figures with intervals.

=========================  ===========================================================================
``calibration``            from labelled items to the gate's thresholds
``risk_control``           thresholds with a guarantee on the error rate of fast decisions
``list_calibration``       the same for the best of N; ``labelled_lists`` reads its lists and has them as arrays
``together``               how much fast path and votes count in an answer, and the errors that they share
``tradeoff``               accuracy against tokens for every pair of thresholds
``calibration_report``     the figures of a calibration; ``calibration_plots`` draws them
``evaluation``             runs a model over a benchmark; ``evaluation_records`` is its results file,
                           ``evaluation_report`` the figures made of it
``comparison``             several systems on the same items, with paired intervals of their differences;
                           ``comparison_plot`` draws it
``benchmark_formats``      reads the files of published benchmarks; ``benchmark_metrics`` has their metrics
``planning``               how many labelled items a guarantee needs
``drift``                  whether new items look like those that a gate was calibrated on
``labelled``               labelled items as the statistics need them; ``labelled_rows`` reads them from files
``score_files``            scores that another program gave; ``verdict_texts`` reads what its judge wrote
``data_files``             rows of JSON, JSONL, CSV, Parquet and Arrow files
``metrics``, ``intervals``  the statistics themselves, with numpy alone
``conformance``            checks that another build's gate decides like this one
=========================  ===========================================================================
"""
