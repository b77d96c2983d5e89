"""Completions that end with a token from a position on: the untruncated ones, cut by hand."""

import pytest
import torch

from talltree.types import Truncation

from .test_sampling import PROMPTS, run
from .tiny import STOP, gpt2, llama


def truncated(model, tokens, after, seed=3, length=12, **options):
    return run(model, length=length, seed=seed, truncation=Truncation(tokens, after), **options)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("rows", [2, 256])
@pytest.mark.parametrize("after", [0, 3, 11])
def test_truncation_is_the_untruncated_completion_cut_by_hand(fast, rows, after):
    """Every prompt holds token 5 or not; only the completion's from position `after` on ends it."""
    model = gpt2()
    cuts = (5, 9, 13)
    whole = run(model, prompts=PROMPTS * 4, fast=fast)
    cut = truncated(model, cuts, after, prompts=PROMPTS * 4, fast=fast, rows=rows)
    for row in range(len(whole.tokens_NT)):
        tokens = whole.tokens_NT[row][whole.mask_NT[row]].tolist()
        ends = [t for t, token in enumerate(tokens) if t >= after and token in cuts]
        expected = tokens[: ends[0] + 1] if ends else tokens
        mask = cut.mask_NT[row]
        assert cut.tokens_NT[row][mask].tolist() == expected
        assert mask.sum() == len(expected)
        assert bool(cut.ended_N[row]) == bool(ends)
        logp = whole.logp_NT[row, : len(expected)]
        torch.testing.assert_close(cut.logp_NT[row, : len(expected)], logp, atol=1e-5, rtol=0)
        assert not cut.tokens_NT[row][~mask].any() and not cut.logp_NT[row][~mask].any()
    assert cut.mask_NT.shape[1] == int(cut.mask_NT.sum(1).max())
    # Otherwise the cut would prove little: some end by it, some by the stop token, some not at all.
    if after == 3:
        assert cut.ended_N.any() and not cut.ended_N.all()
        assert not torch.equal(cut.mask_NT.sum(1), whole.mask_NT.sum(1))


def test_a_stop_token_ends_a_completion_but_is_not_the_required_end():
    model = llama()
    cut = truncated(model, (7,), 0, prompts=PROMPTS * 8)
    stopped = (cut.tokens_NT == STOP) & cut.mask_NT
    assert stopped.any()
    assert not (stopped.any(1) & cut.ended_N).any()
    # A token that is both counts from its position on.
    both = truncated(model, (STOP,), 2, prompts=PROMPTS * 8)
    length_N, stopped_N = both.mask_NT.sum(1), ((both.tokens_NT == STOP) & both.mask_NT).any(1)
    assert torch.equal(both.ended_N, stopped_N & (length_N > 2))
    assert (stopped_N & ~both.ended_N).any()
