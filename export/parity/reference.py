"""Runs the checkpoint itself in float32 through transformers. Every exported file is measured against it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.errors import ExportError, missing_extra
from fsrm_lite.export.parity.readings import Chain, ChainTask, ChainWriter, TokenReading, read_logits
from fsrm_lite.runtimes.engine import memory_bytes
from fsrm_lite.runtimes.prefill import Family, families

TOKENS_PER_BATCH = 2048
"""Tokens of a batch, at most: so few that its activations take little memory beside the weights."""

THINKING_BYTES_PER_BATCH = 1 << 30
"""Bytes that a batch of chains may take: its keys and values, and the inside of an MLP while its prompts are read.

Many chains are written at a time, since every step reads all weights. What limits them is memory: so much of it leaves
the loading of the weights as the moment that takes most, as long as they are larger.
"""

WIDE_SHARE = 0.5
"""Share of the machine's memory that the weights may take in float32; a larger model is widened layer by layer."""

Progress = Callable[[int, int], None]


class Reference:
    """The checkpoint as a transformers model, computed in float32 on the CPU."""

    def __init__(self, root: Path, *, scalar: bool = False, by_layer: bool | None = None) -> None:
        """Load the weights.

        They take four bytes per parameter; or, by layer, as many as in the file, beside four per parameter of one layer
        or of the head. Both give the same bits: every number of 16 bits is one of float32.

        Args:
            root: The checkpoint folder.
            scalar: The model has a scalar head.
            by_layer: Keep weights of 16 bits as they are, and make float32 of a layer's while it computes, which takes
                longer. By default only if all of them in float32 would take more than ``WIDE_SHARE`` of the memory.

        Raises:
            MissingExtraError: If torch or transformers is missing.
            ExportError: If transformers cannot load the checkpoint.
        """
        try:
            import torch
            from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
            from transformers.utils import logging
        except ImportError as error:
            raise missing_extra("transformers with torch", "export", error) from error
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self._torch = torch
        self._scalar = scalar
        if by_layer is None:
            stored = sum(path.stat().st_size for path in root.glob("*.safetensors"))
            by_layer = 2 * stored > WIDE_SHARE * memory_bytes()
        try:
            kind = AutoModelForSequenceClassification if scalar else AutoModelForCausalLM
            dtype = "auto" if by_layer else torch.float32
            self._model: Any = kind.from_pretrained(root, dtype=dtype, local_files_only=True).eval()
        except (OSError, ValueError, RuntimeError) as error:
            raise ExportError(f"transformers cannot load {root}: {error}") from error
        if by_layer:
            body = self._model.model
            head = self._model.score if scalar else self._model.lm_head
            body.embed_tokens.register_forward_hook(lambda module, given, found: found.float())
            for part in (*body.layers, body.norm, head):
                part.register_forward_pre_hook(self._widen)
                part.register_forward_hook(self._narrow)

    def _widen(self, part: Any, given: Any) -> None:  # noqa: ANN401 - torch
        """Make float32 of a part's weights, before it computes."""
        with self._torch.inference_mode(False):
            part.stored = [parameter.data for parameter in part.parameters()]
            for parameter in part.parameters():
                parameter.data = parameter.data.float()

    def _narrow(self, part: Any, given: Any, found: Any) -> None:  # noqa: ANN401 - torch
        """Put a part's weights back as they were."""
        for parameter, stored in zip(part.parameters(), part.stored, strict=True):
            parameter.data = stored
        del part.stored

    def first_token(
        self, sequences: Sequence[Sequence[int]], label_ids: Sequence[int], progress: Progress | None = None
    ) -> list[TokenReading]:
        """Read the distribution of the next token behind each sequence of ids.

        What several sequences begin with is read once (see ``families``).

        Args:
            sequences: Token ids, one list per sequence.
            label_ids: Tokens whose logits are kept.
            progress: Called with sequences done and sequences in all.

        Returns:
            One reading per sequence, in input order.
        """
        readings: dict[int, TokenReading] = {}
        for batch in _family_batches(sequences):
            members = [i for family in batch for i in family.members]
            shared = [family.shared for family in batch for _ in family.members]
            ids, mask = self._pad([sequences[i][n:] for i, n in zip(members, shared, strict=True)], left=False)
            past, before = self._read_shared([sequences[family.members[0]][: family.shared] for family in batch])
            owners = [n for n, family in enumerate(batch) for _ in family.members]
            with self._torch.inference_mode():
                if past is not None:
                    past.batch_select_indices(self._torch.tensor(owners))
                seen = self._torch.cat([before[owners], mask], 1)
                hidden = self._model.model(
                    **_inputs(ids, seen), past_key_values=past, use_cache=past is not None
                ).last_hidden_state
                last = hidden[self._torch.arange(len(members)), mask.sum(1) - 1]
                logits = (self._model.score if self._scalar else self._model.lm_head)(last).numpy()
            readings.update({i: self._reading(row, label_ids) for i, row in zip(members, logits, strict=True)})
            if progress is not None:
                progress(len(readings), len(sequences))
        return [readings[i] for i in range(len(sequences))]

    def _reading(self, logits: NDArray[np.float32], label_ids: Sequence[int]) -> TokenReading:
        return TokenReading((float(logits[0]),), None, None) if self._scalar else read_logits(logits, label_ids)

    def _read_shared(self, prefixes: list[Sequence[int]]) -> tuple[Any, Any]:
        """Read one prefix per family; return their keys and values, and their attention mask.

        If the prefixes are empty, the first is None and the mask has no columns.
        """
        ids, mask = self._pad(prefixes, left=True)
        if not ids.shape[1]:
            return None, mask
        with self._torch.inference_mode():
            return self._model.model(**_inputs(ids, mask), use_cache=True).past_key_values, mask

    def think(self, tasks: Sequence[ChainTask], progress: Progress | None = None) -> list[Chain]:
        """Write a chain for each task, greedily; return the chains in input order.

        The loop is written out here, because transformers' ``generate`` would obey the checkpoint's own generation
        config, and would read everything again for the verdict.
        """
        chains: dict[int, Chain] = {}
        most = max(1, THINKING_BYTES_PER_BATCH // self._bytes_per_token())
        for batch in _batches([task.tokens for task in tasks], most):
            chains.update(zip(batch, self._write([tasks[i] for i in batch]), strict=True))
            if progress is not None:
                progress(len(chains), len(tasks))
        return [chains[i] for i in range(len(tasks))]

    def _bytes_per_token(self) -> int:
        """Return how many bytes a token of a batch takes in float32.

        All layers keep its keys and values; one MLP at a time holds its gate, its values and their product.
        """
        config = self._model.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return 4 * int(2 * config.num_hidden_layers * heads * size + 3 * config.intermediate_size)

    def _write(self, tasks: list[ChainTask]) -> list[Chain]:
        """Return the chains of one batch of tasks, in input order."""
        torch = self._torch
        writers = [ChainWriter(task.ending) for task in tasks]
        chains: dict[int, Chain] = {}
        live, past = list(range(len(tasks))), None
        ids, mask = self._pad([task.prompt for task in tasks], left=True)
        with torch.inference_mode():
            while live:
                out = self._model(**_inputs(ids, mask), past_key_values=past, use_cache=True, logits_to_keep=1)
                written = [writers[i].step(row) for i, row in zip(live, out.logits[:, -1].numpy(), strict=True)]
                chains.update({i: x for i, x in zip(live, written, strict=True) if isinstance(x, Chain)})
                rows = [n for n, x in enumerate(written) if not isinstance(x, Chain)]
                live, past = [live[n] for n in rows], out.past_key_values
                if len(rows) < len(written):
                    past.batch_select_indices(torch.tensor(rows, dtype=torch.long))
                ids = torch.tensor([[written[n]] for n in rows])
                mask = torch.cat([mask[rows], mask.new_ones(len(rows), 1)], 1)
        return [chains[i] for i in range(len(tasks))]

    def _pad(self, rows: list[Sequence[int]], *, left: bool) -> tuple[Any, Any]:
        """Return ids and attention mask, int64 [rows, longest], padded on the left or on the right."""
        width = max(len(row) for row in rows)
        ids = self._torch.zeros((len(rows), width), dtype=self._torch.long)
        mask = self._torch.zeros_like(ids)
        for i, row in enumerate(rows):
            place = slice(width - len(row), width) if left else slice(0, len(row))
            ids[i, place] = self._torch.tensor(list(row))
            mask[i, place] = 1
        return ids, mask


def _inputs(ids: Any, mask: Any) -> dict[str, Any]:  # noqa: ANN401 - torch tensors
    """Return the arguments to call the model with.

    ``ids`` are the last columns of what ``mask`` covers. Padding may be anywhere, so positions are counted by the mask.
    """
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


def _family_batches(sequences: Sequence[Sequence[int]]) -> list[list[Family]]:
    """Return the families in batches of bounded size.

    Families that share nothing get batches of their own, since the model cannot read an empty prefix.
    """
    found = families(sequences)
    batches: list[list[Family]] = []
    for chosen in ([f for f in found if f.shared], [f for f in found if not f.shared]):
        sizes = [max(len(sequences[i]) for i in family.members) * len(family.members) for family in chosen]
        batches += [[chosen[n] for n in batch] for batch in _batches(sizes, TOKENS_PER_BATCH)]
    return batches


def _batches(sizes: Sequence[int], limit: int) -> list[list[int]]:
    """Return positions in batches of similar sizes; padded to its largest, a batch comes to at most about ``limit``."""
    batches: list[list[int]] = []
    for i in sorted(range(len(sizes)), key=lambda i: sizes[i]):
        if not batches or (len(batches[-1]) + 1) * sizes[i] > limit:
            batches.append([])
        batches[-1].append(i)
    return batches
