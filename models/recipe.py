"""Makes fsrm-tiny from nothing, in one command that goes on where it was interrupted.

    python -m fsrm_lite.models.recipe --out RUN -o BUNDLE

It trains the model on written-in errors (``train``), then on its own solutions (``rounds``), reinforces its verdicts
(``reinforce``) and releases it (``release``). Each part can be run by itself too. The trainings go on where they were
interrupted; the release begins anew.
"""

from __future__ import annotations

from pathlib import Path

import click

from fsrm_lite.errors import ExportError
from fsrm_lite.export.folders import check_target
from fsrm_lite.models import reinforce, release, rounds, train


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for all checkpoints and samples.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The bundle to write.")
@click.option("--device", type=click.Choice(("cpu", "cuda")), help="Where to train.  [default: a GPU if there is one]")
@click.pass_context
def main(context: click.Context, out: Path, output: Path, device: str | None) -> None:
    """Train fsrm-tiny in the folder OUT and release it as the bundle OUTPUT."""
    try:
        check_target(output, overwrite=True)  # before hours of training
    except ExportError as error:
        raise click.ClickException(str(error)) from None
    where = {"device": device} if device is not None else {}
    base, own = out / "base", out / "own"
    last = own / f"round-{len(rounds.ROUNDS)}"
    context.invoke(train.main, out=base, **where)
    context.invoke(rounds.main, checkpoint=base, out=own, **where)
    context.invoke(reinforce.main, checkpoint=last, out=own / "reinforced", **where)
    context.invoke(release.main, checkpoint=own / "reinforced", output=output)


if __name__ == "__main__":
    main()
