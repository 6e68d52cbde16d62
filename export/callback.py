"""Exports a model from its trainer: a callback for the trainers of transformers and TRL."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path
from typing import Any, Literal

from fsrm_lite.bundle.manifest import Manifest
from fsrm_lite.errors import ExportError, FsrmError, missing_extra, one_line
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
            on_error: "log" lets the training go on whatever fails while the model is saved or exported, "raise" ends it
                with the error.
            log: Called with one line per export.
            **options: Options of ``fsrm_lite.export.export_checkpoint``: ``spec``, ``recipe``, ``fast``, ``slow``, ...
                The model is called ``name``, by default as the last folder of ``out``. Without ``spec`` and ``recipe``,
                a recipe is recognised by the name of the model that the training began with.

        Raises:
            ExportError: If an option is unknown, or a value is not one of those above.
        """
        if when not in ("save", "end") or on_error not in ("raise", "log"):
            raise ExportError(
                f"when is {when!r} and on_error {on_error!r}, expected 'save' or 'end', and 'raise' or 'log'"
            )
        known = [name for name in signature(export_checkpoint).parameters if name not in ("checkpoint", "out")]
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise ExportError(f"unknown options {', '.join(unknown)}; expected among {', '.join(known)}")
        self._out, self._when, self._on_error, self._log = Path(out), when, on_error, log
        self._options: Mapping[str, Any] = {"overwrite": True, "name": self._out.name, **options}

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ANN401 - the trainer's objects
        """Export after a save, if that was asked for."""
        if self._when == "save" and state.is_world_process_zero:
            self._export(self._out / f"step-{state.global_step}", **given)

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ANN401
        """Export at the end of the training, if that was asked for."""
        if self._when == "end" and state.is_world_process_zero:
            self._export(self._out, **given)

    def _export(self, out: Path, model: Any = None, processing_class: Any = None, **_: object) -> None:  # noqa: ANN401
        """Export, and say how it went."""
        try:
            manifest = self._write(out, model, processing_class)
        except Exception as error:  # saving runs the code of the model and of its tokenizer, which may fail in any way
            if self._on_error == "raise":
                raise
            kind = "" if isinstance(error, FsrmError) else f"{type(error).__name__}: "
            self._log(f"the export of {out} failed: {kind}{one_line(error)}")
            return
        self._log(f"exported {out}: parity {'passed' if manifest.card['parity']['passed'] else 'forced'}")

    def _write(self, out: Path, model: Any, processing_class: Any) -> Manifest:  # noqa: ANN401
        """Save the model and its tokenizer into a temporary folder, and export that."""
        if processing_class is None or model is None:
            raise ExportError("the trainer has no processing_class, the tokenizer; give it one to export a bundle")
        with tempfile.TemporaryDirectory(prefix="fsrm-export-") as temporary:
            folder = Path(temporary) / base_name(model)
            merged(model).save_pretrained(folder)
            processing_class.save_pretrained(folder)
            return export_checkpoint(folder, out, **self._options)


def base_name(model: Any) -> str:  # noqa: ANN401 - a transformers or peft model
    """Return the last part of the name, on the hub or of a folder, of the model that a training began with."""
    began_with = str(getattr(getattr(model, "config", None), "_name_or_path", None) or "")
    return Path(began_with).name or "checkpoint"


def merged(model: Any) -> Any:  # noqa: ANN401 - a transformers or peft model
    """Return a model without LoRA adapters: a copy with the adapters merged, or the model itself if it has none."""
    if not hasattr(model, "merge_and_unload"):
        return model
    from copy import deepcopy

    return deepcopy(model).merge_and_unload()
