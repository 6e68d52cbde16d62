"""Reads a checkpoint: the folder in which a trainer saves a model.

=================  ====================================================================================
``checkpoint``     ``config.json`` as an architecture, and the tensors by name, a few rows at a time
``tensors``        the safetensors files that hold the tensors
``vocabulary``     ``tokenizer.json``: token texts, types, merges, the name of the split
``chat_template``  finds out what the chat template puts around messages
``jinja``          chat templates as transformers runs them, in a sandbox
``traps``          mistakes in templates that would make scores wrong without an error
``spec``           the trainer's ``fsrm.json``: labels, templates and gate, with words made token ids
=================  ====================================================================================
"""
