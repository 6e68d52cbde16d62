"""The functions of ``fsrm_lite.serve.http``, under the name that the module had first."""

from fsrm_lite.serve.http import MAX_BODY_BYTES, chat_completion, make_server, rerank, score, tei_rerank

__all__ = ["MAX_BODY_BYTES", "chat_completion", "make_server", "rerank", "score", "tei_rerank"]
