"""Checkpoint to GGUF (``writer``), and a GGUF asked the questions of the parity report (``reader``)."""
