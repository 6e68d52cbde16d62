"""Checkpoint to GGUF (``writer``) and back (``checkpoint``), and a GGUF asked the questions of parity (``reader``)."""
