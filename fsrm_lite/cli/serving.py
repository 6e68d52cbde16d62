"""``fsrm-lite serve``: a model over HTTP."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import click

from fsrm_lite.cli.models import model_options, open_model


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes a free one.")
@click.option("--api-key", default=None, help="Bearer key that requests have to bring.  [default: none]")
@click.option("--model-name", multiple=True, help="A further name of the model in requests; * for any. Repeatable.")
@click.option("--allow-host", multiple=True, help="A name that the Host header may give. Repeatable.")
@click.option("--allow-origin", multiple=True, help="An origin whose web pages may ask. Repeatable.")
@click.option("--reasoner", default=None, help="Answers chats: solve, FILE.gguf, http://HOST/v1.  [default: solve]")
@click.option(
    "--calibration",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Labelled items of calibrate --record: the page shows what they say of the gate, answers have x_risk.",
)
@click.option("--max-documents", type=click.IntRange(1), default=1000, show_default=True, help="Per request.")
@click.option("--max-body-mb", type=click.FloatRange(0.001), default=16.0, show_default=True, help="Of one request.")
@click.option("--max-waiting", type=click.IntRange(1), default=4096, show_default=True, help="Responses in the queue.")
@click.option("--max-thoughts", type=click.IntRange(1), default=64, show_default=True, help="Requests that may think.")
@click.option("--access-log/--no-access-log", default=True, show_default=True, help="One JSON line per request.")
@model_options
def serve(**options: Any) -> None:  # noqa: ANN401 - click's options
    """Serve a model over HTTP: vLLM's, Cohere's and TEI's rerank shapes, chats, decisions, and a page at /.

    It listens on the loopback address only, unless --host says otherwise. SIGTERM and Ctrl-C finish what was taken.
    """
    from fsrm_lite.loops.opening import open_reasoner
    from fsrm_lite.serve.server import make_server
    from fsrm_lite.serve.service import Limits

    names = ("host", "port", "api_key", "model_name", "allow_host", "allow_origin", "reasoner", "access_log")
    host, port, key, model_names, hosts, origins, reasoner, access_log = (options.pop(name) for name in names)
    calibration = options.pop("calibration")
    limits = Limits(
        documents=options.pop("max_documents"),
        body_bytes=round(options.pop("max_body_mb") * 2**20),
        waiting=options.pop("max_waiting"),
        thoughts=options.pop("max_thoughts"),
    )
    if access_log:
        _log_access()
    judge = options["judge"]
    with open_model(options) as model:
        solves = "solve" in model.bundle.judge().manifest.templates
        wanted = reasoner or ("solve" if solves and model.can_think else None)
        answering = None if wanted is None else open_reasoner(wanted, model=model)
        server = make_server(
            model,
            reasoner=answering,
            host=host,
            port=port,
            key=key,
            names=model_names,
            hosts=hosts or None,
            origins=origins,
            judge=judge,
            limits=limits,
            calibration=calibration,
        )
        shown = f"[{host}]" if ":" in host else host
        click.echo(f"http://{shown}:{server.server_port}/ serves {model.bundle.manifest.name}", err=True)
        if key is None and host not in ("127.0.0.1", "localhost", "::1"):
            click.echo("other machines can reach this address, and no --api-key is set", err=True)
        try:
            server.serve_forever()
        finally:
            server.server_close()


def _log_access() -> None:
    """Write the access log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("fsrm_lite.access")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
