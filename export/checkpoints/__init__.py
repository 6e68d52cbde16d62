"""What is read from a trainer's checkpoint folder.

==============  ================================================================================
``checkpoint``  ``config.json`` as an architecture, and the tensors, streamed by name
``tensors``     safetensors files, a few rows at a time
``vocabulary``  ``tokenizer.json``: token texts, types, merges, the name of the split
``spec``        the trainer's ``fsrm.json``: labels, templates and gate, resolved to token ids
==============  ================================================================================
"""
