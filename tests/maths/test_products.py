"""Products by every library they may be left to, against sums in float64."""

import pytest
import torch

from talltree.maths import products
from talltree.maths.products import packed

OUT, IN = 7, 5


@pytest.fixture(params=[0, OUT * IN], ids=["large", "small"])
def size(request, monkeypatch):
    """The weight counts as a large one, for oneDNN, or as a small one, for torch's own product."""
    monkeypatch.setattr(products, "SMALL", request.param)


def drawn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("by_columns", [True, False])
def test_products_equal_sums_in_float64(size, rows, biased, by_columns):
    x = drawn(rows, IN, seed=0)
    weight = drawn(IN, OUT, seed=1).T if by_columns else drawn(OUT, IN, seed=1)
    bias = drawn(OUT, seed=2) if biased else None
    expected = (x.double().unsqueeze(-2) * weight.double()).sum(-1)
    if bias is not None:
        expected = expected + bias.double()
    torch.testing.assert_close(packed(weight, bias)(x).double(), expected, atol=1e-5, rtol=0)


def test_another_precision_is_kept(size):
    x, weight = drawn(3, IN, seed=0).double(), drawn(OUT, IN, seed=1).double()
    found = packed(weight, None)(x)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, x @ weight.T, atol=1e-14, rtol=0)
