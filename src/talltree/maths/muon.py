"""The orthogonal part of a matrix by Newton-Schulz iteration, on which the optimiser Muon rests.

Jordan et al. 2024 (kellerjordan.github.io/posts/muon).
"""

from __future__ import annotations

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
