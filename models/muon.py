"""Muon, the optimizer of the model's matrices."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration, from Keller Jordan's description (kellerjordan.github.io/posts/muon)."""

ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal, for matrices.

    It computes what ``torch.optim.Muon`` computes with ``adjust_lr_fn="match_rms_adamw"``: the step is scaled to the
    size of AdamW's, so that both can use one learning rate. Torch's own works in bfloat16, which processors without
    instructions for it emulate: there it took two thirds of a training step. This one works in float32, or
    within ``torch.autocast`` in that one's type, and takes all matrices of one shape together.
    """

    def __init__(
        self, matrices: Iterable[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        """Keep the matrices.

        Args:
            matrices: Parameters of two dimensions.
            lr: Learning rate.
            weight_decay: Share of a weight, times the learning rate, that a step takes away.
            momentum: Share of the earlier steps that is kept; Nesterov's form.
        """
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no caller here passes a closure
        """Take one step with the gradients that the matrices hold."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    shapes[matrix.shape].append(matrix)
            for (rows, columns), matrices in shapes.items():
                steps = orthogonal(torch.stack([self._momentum(m, group["momentum"]) for m in matrices]))
                scale = 0.2 * max(rows, columns) ** 0.5
                for matrix, step in zip(matrices, steps, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(step, alpha=group["lr"] * scale)

    def _momentum(self, matrix: nn.Parameter, share: float) -> Tensor:
        """Return the gradient with the momentum in it, and keep the momentum for the next step."""
        gradient = matrix.grad
        if gradient is None:
            raise ValueError("the matrix has no gradient")
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer: Tensor = state["momentum_buffer"].lerp_(gradient, 1 - share)
        return gradient.lerp(buffer, share)


def orthogonal(matrices: Tensor) -> Tensor:
    """Return matrices with the same singular vectors and singular values near 1 (0.5 to 1.5).

    Args:
        matrices: float32, shape [n, rows, columns].
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # the iteration wants singular values of at most 1
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
