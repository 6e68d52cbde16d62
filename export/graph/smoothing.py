"""Moves outlier channels out of the way of int8: a rescaling of weights that leaves the fp32 function as it is.

Where one linear map feeds another through something that acts on each channel alone, a channel may be divided by any
number on one side and multiplied on the other. There are four such places in a decoder layer:

    a norm's weight          and the columns of the maps behind it
    the rows of up_proj      and the columns of down_proj
    the rows of v_proj       and the columns of o_proj (attention mixes tokens, never channels)
    the rows of q_proj       and the rows of k_proj (or q_norm and k_norm), two rotated channels at a time

Row-wise int8 activations suffer from channels that are large in every row. The factor sqrt(activation / weight) splits
the range evenly between both sides (SmoothQuant, arXiv 2211.10438, alpha 0.5), and undoes any such rescaling that a
checkpoint comes with. Each place keeps its factors only where they lower the error measured on calibration rows, as
that file quantizes: the fast graph spreads its rows first (``rotation``), llama.cpp does not. Where rows are spread,
half of the channels change their sign, chosen at random: spreading adds channels up, and what they have in common must
not pile up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fsrm_lite.export.checkpoints.checkpoint import Architecture
from fsrm_lite.export.graph import rotation
from fsrm_lite.export.graph.quantize import int8_rows
from fsrm_lite.export.graph.weights import Floats, Weights

_ERROR_ROWS = 128  # Calibration rows on which two scalings are compared.
_LARGEST_FACTOR = 1e4  # Keeps a channel that was never active from being scaled out of float32's comfort.


@dataclass(frozen=True, slots=True)
class Factor:
    """Multipliers of one tensor: of its rows (or elements) and of its columns; None leaves them alone."""

    rows: Floats | None = None
    columns: Floats | None = None


class SmoothedCheckpoint:
    """A checkpoint whose tensors come rescaled by ``factors``, by tensor name."""

    def __init__(self, checkpoint: Weights, factors: Mapping[str, Factor]) -> None:
        self.arch = checkpoint.arch
        self._checkpoint = checkpoint
        self._factors = factors

    @property
    def head_name(self) -> str:
        """Name of the tensor that maps hidden states to logits."""
        return self._checkpoint.head_name

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._checkpoint.shape(name)

    def tensor(self, name: str, rows: slice | None = None) -> Floats:
        """Read a tensor, or some of its rows, rescaled."""
        values = self._checkpoint.tensor(name, rows)
        factor = self._factors.get(name)
        if factor is None:
            return values
        if factor.rows is not None:
            part = factor.rows if rows is None else factor.rows[rows]
            values = values * (part if values.ndim == 1 else part[:, None])
        return values if factor.columns is None else values * factor.columns


@dataclass(frozen=True, slots=True)
class Activations:
    """What flows through one layer on calibration rows, float32 [rows, width].

    Attributes:
        attention_input: Behind the first norm.
        queries: Rotated, [rows, heads * d].
        keys: Rotated, [rows, kv_heads * d].
        attended: In front of o_proj.
        mlp_input: Behind the second norm.
        gated: In front of down_proj.
    """

    attention_input: Floats
    queries: Floats
    keys: Floats
    attended: Floats
    mlp_input: Floats
    gated: Floats


def layer_factors(checkpoint: Weights, layer: int, seen: Activations, *, spread: bool) -> dict[str, Factor]:
    """Choose the factors of one layer.

    Args:
        checkpoint: The weights as they are.
        layer: Index of the layer.
        seen: Its activations in fp32.
        spread: Whether rows are spread before they are quantized.

    Returns:
        Factors by tensor name; tensors that stay as they are are left out.
    """
    arch, prefix = checkpoint.arch, f"model.layers.{layer}."
    rows: dict[str, Floats] = {}
    columns: dict[str, Floats] = {}

    def divide(names: list[str], by: Floats) -> None:
        for name in names:
            rows[prefix + name] = rows.get(prefix + name, np.ones_like(by)) / by

    attention, mlp = [f"self_attn.{p}_proj.weight" for p in "qkv"], ["mlp.gate_proj.weight", "mlp.up_proj.weight"]
    balance = _Balance(spread)
    for norm, maps, x in (
        ("input_layernorm.weight", attention, seen.attention_input),
        ("post_attention_layernorm.weight", mlp, seen.mlp_input),
    ):
        by = balance.of(x, np.concatenate([checkpoint.tensor(prefix + name) for name in maps]))
        divide([norm], by)
        columns.update({prefix + name: by for name in maps})
    by = balance.of(seen.gated, checkpoint.tensor(prefix + "mlp.down_proj.weight"))
    divide(["mlp.up_proj.weight", *(["mlp.up_proj.bias"] if arch.mlp_bias else [])], by)
    columns[prefix + "mlp.down_proj.weight"] = by
    by = balance.of_values(arch, seen.attended, checkpoint.tensor(prefix + "self_attn.o_proj.weight"))
    divide(["self_attn.v_proj.weight", *(["self_attn.v_proj.bias"] if arch.qkv_bias else [])], by)
    columns[prefix + "self_attn.o_proj.weight"] = _per_query_head(arch, by)
    by = _score_balance(arch, seen.queries, seen.keys)
    kinds = ["norm.weight"] if arch.qk_norm else ["proj.weight", *(["proj.bias"] if arch.qkv_bias else [])]
    divide([f"self_attn.q_{kind}" for kind in kinds], by if arch.qk_norm else _per_query_head(arch, by))
    divide([f"self_attn.k_{kind}" for kind in kinds], np.float32(1) / by)
    return {name: Factor(rows.get(name), columns.get(name)) for name in {*rows, *columns}}


@dataclass(frozen=True, slots=True)
class _Balance:
    """Chooses what to divide the columns of a map's input by, and multiply those of its weight [out, in] by, [in]."""

    spread: bool

    def of(self, x: Floats, weight: Floats) -> Floats:
        """For an input ``x`` [rows, in]."""
        by = _ratio(np.abs(x).max(axis=0), np.abs(weight).max(axis=0))
        return self._better(by, by, x, weight)

    def of_values(self, arch: Architecture, attended: Floats, weight: Floats) -> Floats:
        """One factor per channel of a value head, shared by the query heads that read it, [kv_heads * d]."""
        shape = (arch.kv_heads, arch.heads // arch.kv_heads, arch.head_dim)
        top, columns = (np.abs(part).max(axis=0).reshape(shape).max(axis=1).reshape(-1) for part in (attended, weight))
        by = _ratio(top, columns)
        return self._better(by, _per_query_head(arch, by), attended, weight)

    def _better(self, by: Floats, wide: Floats, x: Floats, weight: Floats) -> Floats:
        """``by`` where it helps, else ones; ``wide`` is the same for each column."""
        x = x[:: -(-len(x) // _ERROR_ROWS)]
        helps = int8_error(x / wide, weight * wide, spread=self.spread) < int8_error(x, weight, spread=self.spread)
        by = by if helps else np.ones_like(by)
        return by * _signs(len(by)) if self.spread else by


def _signs(count: int) -> Floats:
    return (2 * np.random.default_rng(count).integers(0, 2, count) - 1).astype(np.float32)


def _score_balance(arch: Architecture, queries: Floats, keys: Floats) -> Floats:
    """Return what to divide queries by and multiply keys by.

    [kv_heads * d], or [d] where a norm is shared by all heads.

    Rotation mixes channel c with c + d/2, so both get one factor.
    """
    half = arch.head_dim // 2
    group = arch.heads // arch.kv_heads
    q = np.abs(queries).max(axis=0).reshape(arch.kv_heads, group, 2, half).max(axis=(1, 2))
    k = np.abs(keys).max(axis=0).reshape(arch.kv_heads, 2, half).max(axis=1)
    if arch.qk_norm:
        q, k = q.max(axis=0, keepdims=True), k.max(axis=0, keepdims=True)
    return np.concatenate([_ratio(q, k)] * 2, axis=1).reshape(-1)


def _per_query_head(arch: Architecture, by: Floats) -> Floats:
    """Repeat factors [kv_heads * d] for the query heads that share each KV head."""
    return np.repeat(by.reshape(arch.kv_heads, 1, -1), arch.heads // arch.kv_heads, axis=1).reshape(-1)


def _ratio(top: Floats, other: Floats) -> Floats:
    """Square root of ``top / other``, around a geometric mean of 1, bounded; 1 where either is zero."""
    live = (top > 0) & (other > 0)
    ratio = np.ones(top.shape, dtype=np.float64)
    ratio[live] = np.sqrt(top[live].astype(np.float64) / other[live])
    if live.any():
        ratio[live] /= np.exp(np.log(ratio[live]).mean())
    return np.clip(ratio, 1 / _LARGEST_FACTOR, _LARGEST_FACTOR).astype(np.float32)


def int8_error(x: Floats, weight: Floats, *, spread: bool) -> float:
    """Mean squared error of the int8 product of ``x`` [rows, in] with ``weight`` [out, in], spread first or not."""
    exact = x @ weight.T
    if spread:
        x, weight = rotation.spread(x), rotation.spread(weight)
    x8, x_scale = int8_rows(x)
    w8, w_scale = int8_rows(weight)
    rounded = (x8.astype(np.float32) @ w8.astype(np.float32).T) * x_scale[:, None] * w_scale
    return float(np.square(rounded - exact).mean())
