"""Products with a weight matrix, x @ weight.T + bias, by whichever library is fast at their shape.

torch's own float32 product on a CPU loses much of the chip's rate where x has few rows and the weight has
many (a decode step, its vocabulary head most of all). oneDNN, which torch carries, does not, and less so with
the weight reordered once beforehand; but a call of it costs more than the product with a small weight. In
other precisions and without oneDNN a large one is plain `linear`, and every one on other devices.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

SMALL = 600_000
"""Numbers in a weight up to which torch's own product, with the weight stored by columns, costs less than a
call of oneDNN's."""

Product = Callable[[Tensor], Tensor]
"""x (M, in) -> x @ weight.T + bias (M, out), without gradient."""


def packed(weight: Tensor, bias: Tensor | None) -> Product:
    """The product with one weight, reordered once and then used for any number of rows.

    It may or may not follow later changes of the weight: take it anew after every update.
    """
    if weight.device.type == "cpu" and weight.numel() <= SMALL:
        by_columns = weight.T.contiguous()
        if bias is None:
            return lambda x: torch.mm(x, by_columns)
        return lambda x: torch.addmm(bias, x, by_columns)
    if _onednn(weight):
        reordered = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, reordered, bias, "none", [], "")
    return lambda x: F.linear(x, weight, bias)


def _onednn(weight: Tensor) -> bool:
    on_cpu = weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
    return on_cpu and weight.dtype == torch.float32
