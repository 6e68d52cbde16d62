"""Reads safetensors files a few rows at a time, as float32. Knows nothing of models.

A *shard* is one of the files over which the weights of a checkpoint are spread. The ``safetensors`` library is not
used, because its numpy reader has no bfloat16 and maps whole files into memory. Here a caller needs memory for the rows
that it asks for and no more, and each way in which a shard can be broken has its own message.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.errors import ExportError, UnsupportedCheckpointError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
MAX_HEADER_BYTES = 100_000_000
"""The safetensors format allows no longer header."""
CHUNK_BYTES = 64 << 20
"""Size of the float32 pieces in which a large tensor is streamed."""

_DTYPES: dict[str, tuple[str, int]] = {"F32": ("<f4", 4), "F16": ("<f2", 2), "BF16": ("<u2", 2)}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies: shard, safetensors dtype name, shape, byte offset in the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int


def index_shards(root: Path) -> dict[str, TensorInfo]:
    """Return every tensor of a checkpoint folder by name; only headers are read.

    Raises:
        ExportError: If there are no safetensors files, or a shard is missing, truncated or malformed.
        UnsupportedCheckpointError: If a tensor is stored in a dtype other than F32, F16 or BF16.
    """
    if (root / INDEX_NAME).is_file():
        weight_map = _read_index(root / INDEX_NAME)
        tensors: dict[str, TensorInfo] = {}
        for shard in sorted(set(weight_map.values())):
            tensors |= read_header(root / shard)
        for name, shard in weight_map.items():
            if name not in tensors:
                raise ExportError(
                    f"{root / shard} does not hold the tensor {name} that {INDEX_NAME} places there; "
                    "copy the checkpoint again"
                )
        return tensors
    if (root / SINGLE_NAME).is_file():
        return read_header(root / SINGLE_NAME)
    if any(root.glob("*.bin")) or any(root.glob("*.bin.index.json")):
        raise UnsupportedCheckpointError(
            f"{root} holds .bin weights only; save it again with save_pretrained(..., safe_serialization=True)"
        )
    raise ExportError(
        f"{root} holds neither {SINGLE_NAME} nor {INDEX_NAME}; expected the weights of a Hugging Face checkpoint there "
        "(weights that are .bin files are saved anew with save_pretrained)"
    )


def _read_index(path: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(path.read_text("utf-8"))["weight_map"]
        shards = {str(name): str(shard) for name, shard in weight_map.items()}
    except (ValueError, OverflowError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{path} is not a safetensors index ({error}); copy the checkpoint again") from error
    for shard in shards.values():
        if not shard or Path(shard).name != shard:
            raise ExportError(f"{path} names the shard {shard!r}, expected a file beside it; copy the checkpoint again")
    return shards


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Return the tensors of one safetensors file.

    Raises:
        ExportError: If the file is missing, truncated or malformed.
        UnsupportedCheckpointError: On a dtype other than F32, F16 or BF16.
    """
    if not path.is_file():
        raise ExportError(f"the shard {path} is missing; copy the checkpoint again")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise ExportError(
                f"the shard {path} ({size} bytes) is corrupt: its header would be {length} bytes; "
                "copy the checkpoint again"
            )
        try:
            header: dict[str, Any] = json.loads(file.read(length))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            tensors = {name: _parse_entry(path, name, entry, 8 + length) for name, entry in entries.items()}
            end = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        except (ValueError, OverflowError, KeyError, TypeError, AttributeError) as error:
            raise ExportError(
                f"the shard {path} is corrupt: its header cannot be read ({error}); copy the checkpoint again"
            ) from error
    if end != size:
        raise ExportError(f"the shard {path} has {size} bytes, its header promises {end}; copy the checkpoint again")
    return tensors


def _parse_entry(path: Path, name: str, entry: dict[str, Any], base: int) -> TensorInfo:
    dtype, shape = entry["dtype"], tuple(int(n) for n in entry["shape"])
    start, end = entry["data_offsets"]
    if dtype not in _DTYPES:
        raise UnsupportedCheckpointError(
            f"{path}: tensor {name} is stored as {dtype}, expected one of {', '.join(_DTYPES)}"
        )
    if end - start != math.prod(shape) * _DTYPES[dtype][1]:
        raise ValueError(f"tensor {name} of shape {list(shape)} takes {end - start} bytes")
    return TensorInfo(path, dtype, shape, base + start)


def read_tensor(info: TensorInfo, rows: slice | None = None) -> NDArray[np.float32]:
    """Read a tensor, or some of its rows, as float32.

    Args:
        info: Where the tensor lies, as ``index_shards`` says.
        rows: Consecutive rows of the first axis; all by default.

    Raises:
        ExportError: If the file ends early.
    """
    stored, width = _DTYPES[info.dtype]
    shape, offset = info.shape, info.offset
    if rows is not None:
        start, stop, _ = rows.indices(shape[0])
        offset += start * math.prod(shape[1:]) * width
        shape = (stop - start, *shape[1:])
    count = math.prod(shape)
    raw = np.fromfile(info.file, dtype=stored, count=count, offset=offset)
    if raw.size != count:
        raise ExportError(f"the shard {info.file} ends in the middle of a tensor; copy the checkpoint again")
    if info.dtype == "BF16":
        # bfloat16 is the upper half of a float32.
        wide = raw.astype("<u4")
        wide <<= 16
        return wide.view("<f4").reshape(shape)
    return raw.astype(np.float32, copy=False).reshape(shape)


def row_slices(shape: tuple[int, ...], chunk_bytes: int = CHUNK_BYTES) -> Iterator[slice]:
    """Yield slices of the first axis that cover ``shape`` in float32 pieces of at most about ``chunk_bytes``."""
    step = max(1, chunk_bytes // (4 * max(1, math.prod(shape[1:]))))
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))
