"""A batch in shares: every process does its own rows of a work, and all get the whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from talltree.stages.rl.processes import Team
from talltree.types import Rollout


def shared_rollout(team: Team, count: int, draw: Callable[[slice], Rollout], device: torch.device) -> Rollout:
    """`draw` of all `count` rows, each process its own."""
    rows = team.share(count)
    if team.size == 1:
        return draw(rows)
    parts = team.gathered(lambda: _moved(draw(rows), torch.device("cpu")) if rows.start < rows.stop else None)
    drawn = [part for part in parts if part is not None]
    width = max(part.logp_NT.shape[1] for part in drawn)

    def column(name: str) -> list[Any]:
        return [row for part in drawn for row in getattr(part, name)]

    def joined(name: str) -> Tensor:
        found = [getattr(part, name) for part in drawn]
        return torch.cat([F.pad(each, (0, width - each.shape[1])) for each in found])

    whole = Rollout(
        column("prompts"),
        column("prompt_ids"),
        column("completions"),
        joined("completion_ids_NT"),
        joined("completion_mask_NT"),
        joined("logp_NT"),
        torch.cat([part.ended_N for part in drawn]),
    )
    return _moved(whole, device)


def shared_rows(team: Team, rollout: Rollout, work: Callable[[Rollout], Tensor]) -> Tensor:
    """`work` of a rollout, which gives each of its rows one of the result, each process its own."""
    if team.size == 1:
        return work(rollout)
    rows = team.share(len(rollout.prompts))
    some = Rollout(*(getattr(rollout, field.name)[rows] for field in dataclasses.fields(Rollout)))
    parts = team.gathered(lambda: work(some).cpu() if rows.start < rows.stop else None)
    return torch.cat([part for part in parts if part is not None]).to(rollout.logp_NT.device)


def _moved(rollout: Rollout, device: torch.device) -> Rollout:
    names = ("completion_ids_NT", "completion_mask_NT", "logp_NT", "ended_N")
    return dataclasses.replace(rollout, **{name: getattr(rollout, name).to(device) for name in names})
