"""The attacks themselves: they notice what goes wrong, and say which ones there are."""

from __future__ import annotations

import pytest

from benchmarks.attack import bulk
from benchmarks.attack.__main__ import ATTACKS, main


class _Ended:
    def __init__(self, status: int) -> None:
        self.status = status

    def wait(self, timeout: float | None = None) -> int:
        return self.status


def test_a_bulk_run_that_fails_by_itself_is_found(tmp_path, monkeypatch):
    """The run without kills works, and every later one ends with an error although its output is all there."""

    def start(command, source, out, options):
        out.write_text("rows")
        return _Ended(1 if out.name.endswith("-whole.jsonl") else 3)

    monkeypatch.setattr(bulk, "_start", start)
    found = bulk.run(tmp_path, kills=4, seed=0).found
    assert found == [f"{command}, run 1: it ended with 3 (killed at [] bytes)" for command in bulk._RUNS]


def test_an_attack_that_there_is_not_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["attack", "texts", "nothing"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert f"there is no attack 'nothing', expected {', '.join(ATTACKS)}" in capsys.readouterr().err


def test_an_attack_runs_by_its_name(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["attack", "texts", "--seed", "1", "--scale", "0.001"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert "| 20 | 0 |" in capsys.readouterr().out


def test_a_forged_turn_is_found(monkeypatch):
    from benchmarks.attack import texts
    from fsrm_lite.bundle import role_forms

    assert texts.turns(conversations=50, seed=1).found == []
    honest = role_forms.RoleForms.pieces

    def trusting(forms, messages):
        return [role_forms.Piece(piece.text, True) for piece in honest(forms, messages)]

    monkeypatch.setattr(role_forms.RoleForms, "pieces", trusting)
    assert texts.turns(conversations=50, seed=1).found
