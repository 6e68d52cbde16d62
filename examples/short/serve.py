"""Serve the model over HTTP until Ctrl-C: python examples/short/serve.py PORT (0 takes a free one)."""

import sys

from fsrm_lite import FastSlowRM, SolveReasoner
from fsrm_lite.serve.server import make_server

rm = FastSlowRM.from_pretrained()
server = make_server(rm, reasoner=SolveReasoner(rm), port=int(sys.argv[1]))
print(f"http://127.0.0.1:{server.server_port}/rerank", flush=True)
server.serve_forever()
