"""A loaded model over HTTP. Needs starlette, uvicorn, httptools and prometheus-client (extra ``serve``).

===============  ============================================================================================
``bodies``       reads a request's JSON: limits, names of fields, and errors that name the field
``lanes``        where requests wait: the fast ones are read together, the thoughts come one after another
``service``      what every shape asks for: scores, comparisons, thoughts; knows the model, nothing of HTTP
``rewards``      the shapes that score and rank: vLLM's, Cohere's, TEI's
``chat``         ``/v1/chat/completions``
``questions``    typed questions answered with probabilities, in no API's own form
``decisions``    the two APIs that ask them: ``/v1/decisions`` and ``/v1/systemone``
``page``         the page at ``/``, and the stream of events that it shows
``calibration``  what labelled items say about the bundle's gate: the page's four curves, the risk
``metrics``      what ``/metrics`` counts
``guards``       what stands before every shape: host, key, slow clients, access log
``application``  which path is answered by which shape, and how each API words its errors
``server``       binds a port and runs the application on uvicorn
===============  ============================================================================================
"""
