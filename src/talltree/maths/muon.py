"""Muon: momentum whose update matrix is replaced by its nearest semi-orthogonal matrix.

Jordan et al. 2024 (kellerjordan.github.io/posts/muon); the scale that lets it share AdamW's learning rate is
of Liu et al. 2025, arXiv:2502.16982. torch.optim.Muon iterates in bfloat16, which a CPU without bfloat16
units does 25 times slower than this float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Approximately U V^T of matrix = U S V^T: every singular value is moved to about 1 (0.7 to 1.2).

    `steps` times X <- a X + (b G + c G^2) X with G = X X^T, from X = matrix / ||matrix||. A zero matrix stays
    zero; singular values below about 1e-2 of the norm do not quite arrive. Float32, shape unchanged.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrix.float()
    is_tall = x.size(0) > x.size(1)
    if is_tall:
        x = x.T
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


class Muon(torch.optim.Optimizer):
    """W <- (1 - lr * weight_decay) W - lr * 0.2 sqrt(max(rows, columns)) * orthogonalise(g + momentum * m).

    m <- momentum * m + g. An update's root mean square is then about 0.2, as AdamW's is. For the matrices
    between embedding and head only. Raises ValueError for a parameter that is not a matrix.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.dim() != 2:
                    raise ValueError(
                        f"Muon is for matrices; got a parameter of shape {tuple(parameter.shape)}"
                    )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"].mul_(group["momentum"]).add_(parameter.grad)
                update = orthogonalise(parameter.grad.add(momentum, alpha=group["momentum"]))
                scale = 0.2 * max(parameter.shape) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * scale)
