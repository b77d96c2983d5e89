"""The least time that a machine of measured speed needs for the arithmetic of an RL step."""

from __future__ import annotations

from typing import NamedTuple

from bench.shapes import Row

BYTES = 4
"""Of a float32 weight."""


class Roofline(NamedTuple):
    """Seconds of one step by phase, at the measured matrix rate and memory bandwidth."""

    sample: float
    reference: float
    forward: float
    backward: float

    @property
    def step(self) -> float:
        return sum(self)


def roofline(row: Row, flops: float, bandwidth: float) -> Roofline:
    """Sampling 2P, reference 2P, forward 2P and backward 4P operations a token, over the matrix rate.

    P = matrix parameters. Sampling goes one token at a time for all sequences, and no such step is faster
    than reading the weights once: max(2 P sequences / flops, 4 P / bandwidth) seconds. flops: operations a
    second; bandwidth: bytes a second. Left out, so that the bound is a bound: attention, norms, softmax, the
    prompt's tokens, the optimiser.
    """
    parameters = row.shape.matrix_parameters
    one_pass = 2 * parameters * row.sequences / flops
    sample = row.tokens * max(one_pass, BYTES * parameters / bandwidth)
    return Roofline(sample, row.tokens * one_pass, row.tokens * one_pass, 2 * row.tokens * one_pass)
