"""The one command that makes fsrm-tiny hands each part what the part before it wrote."""

import inspect

import pytest
from click.testing import CliRunner

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from fsrm_lite.models import recipe, reinforce, release, rounds, train


@pytest.fixture
def ran(monkeypatch):
    """Each part that ran, with its arguments; no part does anything."""
    ran = []
    for name, part in {"train": train, "rounds": rounds, "reinforce": reinforce, "release": release}.items():
        takes = inspect.signature(part.main.callback)

        def record(name=name, takes=takes, **options):
            takes.bind(**options)
            ran.append((name, options))

        monkeypatch.setattr(part.main, "callback", record)
    return ran


@pytest.mark.parametrize("device", ["cpu", "cuda", None])
def test_the_recipe_runs_its_parts_in_order_each_on_what_the_one_before_wrote(tmp_path, ran, device):
    options = ["--out", str(tmp_path / "run"), "-o", str(tmp_path / "bundle")]
    options += ["--device", device] if device else []
    assert CliRunner().invoke(recipe.main, options, catch_exceptions=False).exit_code == 0
    assert [name for name, _ in ran] == ["train", "rounds", "reinforce", "release"]
    given = [options for _, options in ran]
    assert given[0]["out"] == given[1]["checkpoint"]
    assert given[2]["checkpoint"] == given[1]["out"] / f"round-{len(rounds.ROUNDS)}"
    assert given[3]["checkpoint"] == given[2]["out"]
    assert given[3]["output"] == tmp_path / "bundle"
    assert given[0]["steps"] == train.STEPS
    assert given[2]["turns"] == reinforce.TURNS
    assert len({options["device"] for options in given[:3]}) == 1
    assert device is None or given[0]["device"] == device


def test_a_place_that_cannot_take_the_bundle_is_refused_before_anything_is_trained(tmp_path, ran):
    (tmp_path / "notes.txt").write_text("mine")
    done = CliRunner().invoke(recipe.main, ["--out", str(tmp_path / "run"), "-o", str(tmp_path)])
    assert done.exit_code != 0
    assert "not empty" in done.output
    assert ran == []
