"""Parts of calibration and evaluation: labelled items, metrics with intervals, risk control, benchmark formats, reports."""
