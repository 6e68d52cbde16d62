"""Exports a model from its trainer: a callback for the trainers of transformers and TRL."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from fsrm_lite.errors import ExportError, ToleranceError, missing_extra
from fsrm_lite.export.pipeline import export_checkpoint

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise missing_extra("transformers", "export", error) from error


class ExportCallback(TrainerCallback):  # type: ignore[misc] # transformers is not seen by mypy
    """Writes a bundle whenever the trainer saves, or when the training ends.

    TRL's ``RewardTrainer`` trains a scalar head, ``SFTTrainer`` and ``GRPOTrainer`` a vocabulary. LoRA adapters are
    merged into a copy of the weights for the export; the training goes on with the adapters.
    """

    def __init__(
        self,
        out: str | Path,
        *,
        when: Literal["save", "end"] = "end",
        on_error: Literal["raise", "log"] = "log",
        log: Callable[[str], None] = print,
        **options: Any,  # noqa: ANN401 - the options of export_checkpoint go through as they are
    ) -> None:
        """Keep the settings.

        Args:
            out: Folder of the bundle; at each save a folder ``step-N`` in it.
            when: "save" exports at each save of the trainer, "end" once when the training ends.
            on_error: "log" lets the training go on where an export fails, "raise" ends it with the error.
            log: Called with one line per export.
            **options: Options of ``fsrm_lite.export.export_checkpoint``: ``spec``, ``recipe``, ``fast``, ``slow``, ...
        """
        if when not in ("save", "end") or on_error not in ("raise", "log"):
            raise ExportError(
                f"when is {when!r} and on_error {on_error!r}, expected 'save' or 'end', and 'raise' or 'log'"
            )
        self._out, self._when, self._on_error, self._log = Path(out), when, on_error, log
        self._options: Mapping[str, Any] = {"overwrite": True, **options}

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ANN401 - the trainer's objects
        """Export after a save, if that was asked for."""
        if self._when == "save" and state.is_world_process_zero:
            self._export(self._out / f"step-{state.global_step}", **given)

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ANN401
        """Export at the end of the training, if that was asked for."""
        if self._when == "end" and state.is_world_process_zero:
            self._export(self._out, **given)

    def _export(self, out: Path, model: Any = None, processing_class: Any = None, **_: object) -> None:  # noqa: ANN401
        """Save the model and its tokenizer into a temporary folder, and export that."""
        if processing_class is None or model is None:
            raise ExportError("the trainer has no processing_class, the tokenizer; give it one to export a bundle")
        with tempfile.TemporaryDirectory(prefix="fsrm-export-") as folder:
            merged(model).save_pretrained(folder)
            processing_class.save_pretrained(folder)
            try:
                manifest = export_checkpoint(folder, out, name=self._out.name, **self._options)
            except (ExportError, ToleranceError) as error:
                if self._on_error == "raise":
                    raise
                self._log(f"the export of {out} failed: {error}")
                return
        self._log(f"exported {out}: parity {'passed' if manifest.card['parity']['passed'] else 'forced'}")


def merged(model: Any) -> Any:  # noqa: ANN401 - a transformers or peft model
    """Return a model without LoRA adapters: a copy with the adapters merged, or the model itself if it has none."""
    if not hasattr(model, "merge_and_unload"):
        return model
    from copy import deepcopy

    return deepcopy(model).merge_and_unload()
