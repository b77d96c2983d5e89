"""What the rooms hand to each other: Prompt, Truncation, Rollout, Scored, Reward.

Shape suffixes, one legend for the whole house: N rollouts, P prompts, G per group, S all tokens,
T completion tokens, U = T + 1 states of a completion (before each token, and the finished text), V
vocabulary. A mask is named for what is True.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor

Span = tuple[int, int]
"""Half-open character range [start, end) of the text prompt + completion."""


@dataclass(frozen=True)
class Prompt:
    """A prompt's text and the dataset row it came from; the row's columns reach the reward as keywords."""

    text: str
    row: Mapping[str, Any] = field(default_factory=dict)


class Reward(Protocol):
    """A plain callable over a batch: one float per completion, or None for "not scored".

    A reward may also have an attribute `spans(prompt, completion) -> list[Span]`: the ranges of
    prompt + completion that earned it, so that pages can mark them.
    """

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Any
    ) -> list[float | None]: ...


class Truncation(NamedTuple):
    """A completion ends with the first of token_ids at position `after` (from 0) or later, itself included.

    Only the completion's tokens count, never the prompt's. Ziegler et al. 2019: "." after 16 tokens.
    """

    token_ids: tuple[int, ...]
    after: int


@dataclass(frozen=True)
class Rollout:
    """The facts of sampling N completions; groups of one prompt are adjacent.

    completion_ids_NT is left-aligned and includes the token that ended it; completion_mask_NT is True on
    every sampled token, that one included; logp_NT (nats, float32, 0 outside the mask) is the log-prob under
    the distribution that was really sampled; ended_N is True where the completion has its required end: a
    stop token, or with a Truncation that one's token and no other.
    """

    prompts: list[Prompt]
    prompt_ids: list[list[int]]
    completions: list[str]
    completion_ids_NT: Tensor
    completion_mask_NT: Tensor
    logp_NT: Tensor
    ended_N: Tensor


@dataclass(frozen=True)
class Scored:
    """A Rollout with rewards, reference log-probs and, with a critic, values.

    reward_N is the total reward as given, float64 (0 where not scored_N); components maps a reward's name to
    its N values (None where not scored); ref_logp_NT (nats, 0 outside the mask) is the reference's log-prob
    of the same tokens; token_reward_NT is what the advantage is computed from: the reward on the last
    completion token plus, where KL stands in the reward, -coef * (logp - ref_logp) on every token; value_NU
    is a critic's value of each state before the step's updates, 0 outside the completion.
    """

    rollout: Rollout
    reward_N: Tensor
    scored_N: Tensor
    components: dict[str, list[float | None]]
    ref_logp_NT: Tensor
    token_reward_NT: Tensor
    value_NU: Tensor | None = None
