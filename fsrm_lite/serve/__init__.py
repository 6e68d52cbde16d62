"""A loaded model over HTTP.

========  ===========================================================================================
``http``  the shapes of rerankers and of OpenAI's chat as pure functions, and a small server for them
========  ===========================================================================================
"""
