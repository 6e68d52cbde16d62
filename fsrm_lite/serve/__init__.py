"""A loaded model over HTTP.

========  ===================================================================================================
``http``  answers to the requests of known reranking and chat services, as functions, and a small server
========  ===================================================================================================
"""
