"""``fsrm_lite.serve.server.make_server`` under the name that it had first."""

from fsrm_lite.serve.server import Server, make_server

__all__ = ["Server", "make_server"]
