"""The command line, called in this process."""

from click.testing import CliRunner

from fsrm_lite.cli import main


def call(*arguments):
    """Run ``fsrm-lite`` with these arguments; what it raises is raised here."""
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
