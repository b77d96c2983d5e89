"""The gallery's data: every stored sample as columns in JSON, and stories of before beside those of after."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from talltree.report.facts import Facts

if TYPE_CHECKING:
    import pyarrow as pa

KINDS = (
    ("A typical story", "median reward", 0.5),
    ("A good one", "9 of 10 are below", 0.9),
    ("A weak one", "9 of 10 are above", 0.1),
)
"""What a pair of stories shows: its title, what that means, and the quantile of reward."""

COMPONENT = "reward/"


class Pair(NamedTuple):
    """Two samples, by row, that stand at the same quantile of reward, each on its own side."""

    label: str
    note: str
    before: int
    after: int


def thin(table: pa.Table, most: int | None) -> pa.Table:
    """At most `most` rows, evenly spread over the table with its first and last row; every row if None."""
    if most is None or table.num_rows <= most:
        return table
    return table.take(np.linspace(0, table.num_rows - 1, most).round().astype(int))


def columns(table: pa.Table) -> dict[str, Any]:
    """The samples as columns; a missing one is all None, and a prompt is an index into `prompts`.

    kl and reward are exact; `length` counts completion tokens, stop token included; `spans` are flat lists
    start, end, start, end in code points of prompt + completion.
    """
    import pyarrow.compute as pc

    rows = table.num_rows
    prompts = _column(table, "prompt")
    known = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
    has_ids = "completion_ids" in table.column_names
    lengths = pc.list_value_length(table["completion_ids"]).to_pylist() if has_ids else [None] * rows
    names = [name for name in table.column_names if name.startswith(COMPONENT)]
    return {
        "prompts": list(known),
        "prompt": [known[prompt] for prompt in prompts],
        "completion": _column(table, "completion"),
        "step": _column(table, "step"),
        "reward": _finite(_column(table, "reward")),
        "kl": _finite(_column(table, "kl")),
        "length": lengths,
        "ended": _column(table, "ended"),
        "spans": [[edge for span in spans or () for edge in span] for spans in _column(table, "spans")],
        "components": {name.removeprefix(COMPONENT): _finite(_column(table, name)) for name in names},
    }


def comparison(run: Facts) -> dict[str, Any]:
    """Stories of before and after: `pairs` of rows of `stories` (as `columns`), and the `heads` above them.

    From the fresh samples that before and after were measured on; while there are none, from the first
    step's and the best (else the last) step's.
    """
    import pyarrow as pa

    if run.fresh is not None:
        rows = [*run.fresh.before, *run.fresh.after]
        sides = [0] * len(run.fresh.before) + [1] * len(run.fresh.after)
        pairs = choose_pairs(sides, _finite([row.get("reward") for row in rows]), None)
        final = (run.summary or {}).get("final_step")
        heads = [
            "Before: the model as it came",
            "After: final/" + (f", step {final}" if final is not None else ""),
        ]
        chosen = [rows[row] for pair in pairs for row in (pair.before, pair.after)]
        stories = pa.Table.from_pylist([{"step": None, **row} for row in chosen])
    else:
        steps = run.samples["step"].to_pylist()
        pairs = choose_pairs(steps, _finite(_column(run.samples, "reward")), run.best_step)
        shown = [row for pair in pairs for row in (pair.before, pair.after)]
        heads = [f"{when}: step {steps[row]}" for when, row in zip(("Before", "After"), shown, strict=False)]
        if pairs and steps[pairs[0].after] == run.best_step:
            heads[1] += ", the best"
        stories = run.samples.take(pa.array(shown, pa.int64()))
    renumbered = [pair._replace(before=2 * at, after=2 * at + 1)._asdict() for at, pair in enumerate(pairs)]
    return {"heads": heads, "pairs": renumbered, "stories": columns(stories)}


def _column(table: pa.Table, name: str) -> list[Any]:
    return table[name].to_pylist() if name in table.column_names else [None] * table.num_rows


def _finite(values: Sequence[float | None]) -> list[float | None]:
    """Whole floats as ints, which halves their JSON; NaN and infinities, which JSON has not, as None."""
    finite = (value if value is not None and math.isfinite(value) else None for value in values)
    return [int(value) if value is not None and value.is_integer() else value for value in finite]


def choose_pairs(steps: Sequence[int], rewards: Sequence[float | None], best_step: int | None) -> list[Pair]:
    """Stories of the first step beside those of the best (else the last) step, at three quantiles of reward.

    A story is shown once; no pair if there is one step only or no reward.
    """
    known = sorted(set(steps))
    if len(known) < 2:
        return []
    last = best_step if best_step in known[1:] else known[-1]
    before, after = (_ranked(steps, rewards, step) for step in (known[0], last))
    if not before or not after:
        return []
    pairs: list[Pair] = []
    for label, note, quantile in KINDS:
        one, other = (group[round(quantile * (len(group) - 1))] for group in (before, after))
        if not any(one == pair.before or other == pair.after for pair in pairs):
            pairs.append(Pair(label, note, one, other))
    return pairs


def _ranked(steps: Sequence[int], rewards: Sequence[float | None], step: int) -> list[int]:
    """Rows of a step from the lowest reward to the highest; rows without a reward are left out."""
    scored = [
        (reward, row) for row, reward in enumerate(rewards) if steps[row] == step and reward is not None
    ]
    return [row for _, row in sorted(scored)]


def script_json(content: Any) -> str:
    """JSON for a <script>: `<`, `>` and `&` are escaped, so that no text opens a tag or a comment."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029\x7f":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
