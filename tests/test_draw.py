"""One token from logits: the draw, its log-prob, and the distribution that it follows."""

import math

import pytest
import torch
from scipy import stats

from talltree.sampling.draw import draw

ALMOST_ONE = math.nextafter(1.0, 0.0)


def logits_of(*probabilities):
    return torch.tensor([probabilities], dtype=torch.float64).log()


def drawn(logits, uniform):
    token, logp = draw(logits, torch.tensor([uniform], dtype=torch.float64))
    return int(token), float(logp)


@pytest.mark.parametrize(
    ("uniform", "token"),
    [
        (0.0, 0),
        (0.1249999, 0),
        (0.1250001, 1),
        (0.6249999, 1),
        (0.6250001, 2),
        (0.8750001, 3),
        (ALMOST_ONE, 3),
    ],
)
def test_draw_is_the_inverse_of_the_distribution_function(uniform, token):
    probabilities = (0.125, 0.5, 0.25, 0.125)  # edges at 1/8, 5/8, 7/8
    found, logp = drawn(logits_of(*probabilities), uniform)
    assert found == token
    assert logp == pytest.approx(math.log(probabilities[token]), abs=1e-6)


@pytest.mark.parametrize(
    ("uniform", "token"),
    [(0.0, 1), (math.nextafter(0.25, 0), 1), (0.25, 2), (0.5, 4), (math.nextafter(0.75, 0), 4), (0.75, 5)],
)
def test_an_edge_belongs_to_the_token_above_it(uniform, token):
    # Four equal masses, exact in binary, with two tokens of none among them.
    logits = torch.tensor([[-torch.inf, 3.0, 3.0, -torch.inf, 3.0, 3.0]])
    assert drawn(logits, uniform) == (token, pytest.approx(math.log(0.25), abs=1e-6))


@pytest.mark.parametrize("uniform", [0.0, 0.25, 0.5, 0.75, ALMOST_ONE])
@pytest.mark.parametrize("vocabulary", [5, 255, 256, 257, 512, 700])
def test_a_token_without_mass_is_never_drawn(uniform, vocabulary):
    # All mass on two tokens of the middle: nothing before, between or after them can come.
    logits = torch.full((1, vocabulary), -torch.inf)
    low, high = vocabulary // 2 - 1, vocabulary // 2 + 1
    logits[0, [low, high]] = torch.tensor([2.0, 2.0])
    assert drawn(logits, uniform) == (low if uniform < 0.5 else high, pytest.approx(math.log(0.5), abs=1e-6))


@pytest.mark.parametrize("vocabulary", [1, 2, 255, 256, 257, 513, 1024, 1030])
def test_uniform_distributions_of_every_size_around_the_block(vocabulary):
    """With equal masses, u in the middle of the k-th interval gives token k, the ends included."""
    tokens = torch.arange(vocabulary)
    uniforms = (tokens.double() + 0.5) / vocabulary
    found, logp = draw(torch.zeros(vocabulary, vocabulary), uniforms)
    assert torch.equal(found, tokens)
    torch.testing.assert_close(logp, torch.full((vocabulary,), -math.log(vocabulary)), atol=1e-6, rtol=0)
    ends, _ = draw(torch.zeros(2, vocabulary), torch.tensor([0.0, ALMOST_ONE], dtype=torch.float64))
    assert ends.tolist() == [0, vocabulary - 1]


def test_rounding_past_the_end_falls_on_the_last_token_with_mass():
    """Sums of float32 blocks may exceed the float64 sum within a block, just where u is almost 1."""
    logits = torch.randn(200, 300, generator=torch.Generator().manual_seed(2))
    logits[:100, 290:] = -torch.inf
    logits[100:, 250:] = -torch.inf
    tokens, logp = draw(logits, torch.full((200,), ALMOST_ONE, dtype=torch.float64))
    assert tokens.tolist() == [289] * 100 + [249] * 100
    assert logp.isfinite().all()


def test_the_last_block_may_be_without_mass():
    logits = torch.zeros(1, 300)
    logits[0, 256:] = -torch.inf
    assert drawn(logits, ALMOST_ONE)[0] == 255


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_logp_is_log_softmax_in_every_dtype(dtype):
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(64, 1000, generator=generator) * 4 + 30).to(dtype)
    before = logits.clone()
    uniforms = torch.rand(64, dtype=torch.float64, generator=generator)
    tokens, logp = draw(logits, uniforms)
    assert logp.dtype == torch.float32
    exact = logits.double().log_softmax(-1)
    expected = exact.gather(1, tokens.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(logp.double(), expected, atol=1e-6, rtol=0)
    # The drawn token is the one whose interval holds u.
    edges = exact.exp().cumsum(-1)
    inside = (edges.gather(1, tokens.unsqueeze(1)).squeeze(1) - uniforms).clamp(max=0).abs()
    assert float(inside.max()) < 1e-6
    assert torch.equal(logits, before)


def test_nan_logits_show_in_the_logp():
    logits = torch.tensor([[0.0, float("nan"), 1.0], [0.0, 0.0, 0.0]])
    _, logp = draw(logits, torch.tensor([0.5, 0.5], dtype=torch.float64))
    assert logp.isnan().tolist() == [True, False]


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_draws_follow_a_skewed_softmax(temperature):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(600, generator=generator) * 2
    probabilities = (logits.double() / temperature).softmax(-1)
    count = 20_000
    tokens, _ = draw(
        (logits / temperature).expand(count, -1),
        torch.rand(count, dtype=torch.float64, generator=generator),
    )
    p_value = chi_squared(tokens, probabilities)
    assert p_value > 1e-3
    # The test has the power to see a wrong temperature.
    assert chi_squared(tokens, (logits.double() / (temperature * 1.1)).softmax(-1)) < 1e-6


def chi_squared(tokens, probabilities):
    """P value of the counts of the tokens; those expected fewer than 10 times are pooled."""
    observed = torch.bincount(tokens, minlength=len(probabilities)).double()
    expected = probabilities * len(tokens)
    rare = expected < 10
    if rare.any():
        observed = torch.cat([observed[~rare], observed[rare].sum().view(1)])
        expected = torch.cat([expected[~rare], expected[rare].sum().view(1)])
    return float(stats.chisquare(observed.numpy(), expected.numpy()).pvalue)
