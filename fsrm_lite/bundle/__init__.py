"""One folder is one model: its files, its manifest, and how text becomes the token ids it was trained on.

=================  ==================================================================================
``files``          finds a bundle (a folder, the embedded model, the hub) and hands out its files, checked
``hub``            fetches one file of a bundle from the Hugging Face hub, or from its cache
``manifest``       ``fsrm.json``: labels, templates, special tokens, limits, gate; checked on load
``conversation``   prompts (text or chat messages) and responses as callers give them, as plain text
``encoder``        templates filled in and turned into ids, such that no text can become a control token
=================  ==================================================================================
"""
