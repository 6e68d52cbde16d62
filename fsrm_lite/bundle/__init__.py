"""A bundle is a folder that holds one model: its files, its manifest, and how text becomes the model's token ids.

=================  =======================================================================================
``files``          finds a bundle (a folder, the embedded model, the hub) and gives out its files, checked
``hub``            fetches one file of a bundle from the Hugging Face hub, or from its cache
``manifest``       ``fsrm.json``: labels, templates, special tokens, limits, gate; checked when it is read
``conversation``   reads prompts, chat messages and responses in all their forms, and makes plain text of them
``role_forms``     how the model's own chat template writes a conversation, as data
``encoder``        fills in templates and turns them into ids, so that no text can become a control token
=================  =======================================================================================
"""
