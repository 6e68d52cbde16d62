"""What a model and its gate are worth: labelled data in, thresholds and figures with intervals out.

=========================  ===========================================================================
``calibration``            from labelled items to the gate's thresholds
``risk_control``           thresholds with a guarantee on the error rate of fast decisions
``tradeoff``               accuracy against tokens for every pair of thresholds
``calibration_report``     the figures of a calibration; ``calibration_plots`` draws them
``evaluation``             runs a model over a benchmark; ``evaluation_records`` is its results file,
                           ``evaluation_report`` the figures made of it
``benchmark_formats``      published benchmark files read as they are; ``benchmark_metrics`` their metrics
``labelled``               labelled items as the statistics need them; ``labelled_rows`` reads them from files
``data_files``             rows of JSON, JSONL and CSV files
``metrics``, ``intervals``  the statistics themselves, numpy alone
``conformance``            proof that another build's gate decides like this one
=========================  ===========================================================================
"""
