"""One comparison from beginning to end: sample, measure, compare, write."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from talltree import checkpoint
from talltree.config import to_dict
from talltree.errors import ConfigError, DataError
from talltree.evals import comparison
from talltree.evals.comparison import Difference
from talltree.evals.stories import judged
from talltree.evals.verdict import verdict, with_interval
from talltree.models.load import compute_device
from talltree.run import Run, environment, refuse_used
from talltree.stages import fresh
from talltree.stages.compare import items, people
from talltree.stages.compare.config import Config
from talltree.stages.compare.measures import (
    Single,
    by_prompt,
    load_rewards,
    pooled,
    single,
    texts_by_prompt,
)
from talltree.stages.compare.sides import Plan, Side, plan
from talltree.stages.fresh import Completion, Loaded
from talltree.types import Reward

COMPARISON = "comparison.json"
SAMPLES = "samples.jsonl"


class Drawn(NamedTuple):
    """A side with its completions; sha256 of the weights, None for a file of completions."""

    side: Side
    completions: list[Completion]
    sha256: str | None


def run(config: Config) -> None:
    """Writes comparison.json, samples.jsonl, summary.json and report.html into `output_dir`.

    Raises TallTreeError for whatever the user can mend, before there is a folder.
    """
    started = time.monotonic()
    folder = Path(config.output_dir).expanduser()
    refuse_used(folder)
    planned = plan(config)
    scorers = load_rewards(config.rewards)
    names = [side.name for side in planned.sides]
    study = None if config.people is None else people.read(config.people, config.people_samples, names)
    read = items.read(planned.results)
    drawn = _drawn(config, planned)
    content: dict[str, Any] = {"stage": "compare", "level": comparison.LEVEL, "notes": []}
    if drawn:
        content |= _completions(config, planned, drawn, scorers)
    if read:
        content["items"] = items.compare(read)
    if study is not None:
        content["people"] = people.compare(study)
    _write(config, folder, content, drawn, started)
    for line in _lines(content):
        print(line, flush=True)
    print(f"comparison: {folder}   page: {folder / 'report.html'}", flush=True)


def _drawn(config: Config, planned: Plan) -> list[Drawn]:
    """The completions of every side, one model in memory at a time beside the reference."""
    if not planned.sides:
        return []
    device = compute_device(config.device)
    models = [side for side in planned.sides if side.kind == "model"]
    reference = fresh.load(planned.reference, device) if planned.reference is not None and models else None
    found = []
    for side in planned.sides:
        if side.kind == "samples":
            found.append(Drawn(side, fresh.read_completions(Path(side.source)), None))
            continue
        loaded = fresh.load(side.source, device)
        _require_new(side, loaded, found)
        if reference is not None:
            fresh.require_same_tokens(loaded, reference)
        started = time.monotonic()
        completions = fresh.draw(loaded, planned.prompts, planned.sampling, reference)
        taken = time.monotonic() - started
        print(f"{side.name}: {len(completions)} completions in {taken:.0f} s", flush=True)
        found.append(Drawn(side, completions, loaded.sha256))
    _require_equal_prompts(found)
    return found


def _require_new(side: Side, loaded: Loaded, before: Sequence[Drawn]) -> None:
    for other in before:
        if other.sha256 == loaded.sha256:
            raise ConfigError(
                f"{other.side.name} and {side.name} are the same model: their weights are equal "
                f"(SHA-256 {loaded.sha256[:12]}), so there is nothing to compare"
            )


def _require_equal_prompts(drawn: Sequence[Drawn]) -> None:
    first, *others = [(each.side.name, texts_by_prompt(each.completions)) for each in drawn]
    for name, groups in others:
        missing = [prompt for prompt in first[1] if prompt not in groups]
        added = [prompt for prompt in groups if prompt not in first[1]]
        if missing or added:
            which, where = (missing[0], name) if missing else (added[0], first[0])
            raise DataError(
                f"{first[0]} and {name} have unequal prompt sets ({len(first[1])} and {len(groups)} prompts; "
                f"{which[:40]!r} is missing in {where}); compare completions of the same prompts"
            )
        for prompt, texts in groups.items():
            if len(texts) != len(first[1][prompt]):
                raise DataError(
                    f"{first[0]} and {name} have {len(first[1][prompt])} and {len(texts)} completions of "
                    f"{prompt[:40]!r}; give the same number, for variety depends on it"
                )


def _judged(config: Config, drawn: Sequence[Drawn]) -> list[list[float | None] | None]:
    """Nats a token of every completion under the judge; None where there is no judge."""
    if config.judge is None:
        return [None for _ in drawn]
    judge = fresh.load(config.judge, compute_device(config.device))
    found: list[list[float | None] | None] = []
    for each in drawn:
        rows = judged(judge.model, judge.tokenizer, [row._asdict() for row in each.completions])
        found.append(
            [row["judge_nats"] / row["judge_tokens"] if row["judge_tokens"] else None for row in rows]
        )
    return found


def _completions(
    config: Config, planned: Plan, drawn: Sequence[Drawn], scorers: dict[str, Reward]
) -> dict[str, Any]:
    columns = {prompt.text: prompt.row for prompt in planned.prompts}
    heard = _judged(config, drawn)
    measured = [
        single(each.completions, scorers, columns, found) for each, found in zip(drawn, heard, strict=True)
    ]
    sets = pooled()
    differences: list[tuple[str, Difference]] = []
    for each, values in zip(drawn[1:], measured[1:], strict=True):
        differences += [(each.side.name, found) for found in _singles(drawn[0], measured[0], each, values)]
        left, right = texts_by_prompt(drawn[0].completions), texts_by_prompt(each.completions)
        differences += [
            (each.side.name, comparison.of_sets(measure.name, measure.unit, measure.of_texts, left, right))
            for measure in sets
        ]
    corrected = comparison.corrected([found for _, found in differences])
    against = {
        each.side.name: [
            found for (name, _), found in zip(differences, corrected, strict=True) if name == each.side.name
        ]
        for each in drawn[1:]
    }
    first = drawn[0].side.name
    return {
        "models": [
            {"name": each.side.name, "source": each.side.source, "sha256": each.sha256} for each in drawn
        ],
        "prompts": len({each.prompt for each in drawn[0].completions}),
        "seeds": sorted({each.seed for each in drawn[0].completions}),
        "completions_per_model": len(drawn[0].completions),
        "temperature": planned.sampling.temperature if drawn[0].sha256 else None,
        "reference": planned.reference,
        "judge": config.judge,
        "tests": sum(found.p_value is not None for found in corrected),
        "differences": {
            name: [comparison.as_json(each) for each in found] for name, found in against.items()
        },
        "verdict": {name: verdict(first, name, found) for name, found in against.items()},
        "notes": _notes(drawn, corrected),
    }


def _singles(
    left: Drawn, of_left: Sequence[Single], right: Drawn, of_right: Sequence[Single]
) -> list[Difference]:
    others = {each.name: each for each in of_right}
    found = []
    for measure in of_left:
        other = others.get(measure.name)
        if other is None:
            continue
        before, after = (
            by_prompt(left.completions, measure.values),
            by_prompt(right.completions, other.values),
        )
        if any(before[prompt] and after[prompt] for prompt in before):
            found.append(comparison.of_completions(measure.name, measure.unit, before, after))
    return found


def _notes(drawn: Sequence[Drawn], differences: Sequence[Difference]) -> list[str]:
    prompts = len({each.prompt for each in drawn[0].completions})
    seeds = len({each.seed for each in drawn[0].completions})
    notes = [
        (
            f"Intervals are 95%, over {differences[0].over}; p-values are corrected by Holm over the "
            f"{sum(each.p_value is not None for each in differences)} tests of this table, one family."
        ),
        (
            "One trained model stands on each side: the intervals leave out what training again with "
            "another seed would change."
        ),
    ]
    if seeds == 1:
        notes.append("There is one sampling seed: the intervals leave out what another seed would change.")
    if prompts < comparison.MANY_PROMPTS:
        these = "this one prompt" if prompts == 1 else f"these {prompts} prompts"
        notes.append(
            f"They hold for {these} and say nothing of others: with {comparison.MANY_PROMPTS} or more, "
            "prompts would be drawn anew instead."
        )
    return notes


def _write(
    config: Config, folder: Path, content: dict[str, Any], drawn: Sequence[Drawn], started: float
) -> None:
    with Run.create(folder, to_dict(config), environment()) as made:
        rows = [{"source": each.side.name, **row._asdict()} for each in drawn for row in each.completions]
        if rows:
            fresh.write_rows(folder / SAMPLES, rows)
        written = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        checkpoint.write_file(folder / COMPARISON, written.encode())
        summary = {
            "stage": "compare",
            "verdict": content.get("verdict", {}),
            "wall_time_seconds": time.monotonic() - started,
        }
        made.write_summary(summary)
        from talltree.report import comparison as page

        page.write(folder)


def _lines(content: dict[str, Any]) -> list[str]:
    """The table and the verdict for the terminal."""
    lines = []
    names = [each["name"] for each in content.get("models", [])]
    for name, differences in content.get("differences", {}).items():
        lines.append(f"{name} against {names[0]}")
        width = max(len(each["measure"]) for each in differences)
        lines += [f"  {each['measure']:<{width}}  {_cells(each)}" for each in differences]
        lines += [f"  {sentence}" for sentence in content["verdict"][name]]
    for part in ("items", "people"):
        lines += content.get(part, {}).get("verdict", [])
    return lines + content["notes"]


def _cells(each: dict[str, Any]) -> str:
    from talltree.evals.results import metric_from_json

    left, right, apart = (metric_from_json(each[key]) for key in ("left", "right", "difference"))
    return f"{with_interval(left)} -> {with_interval(right)}: {with_interval(apart, True)} {apart.unit}"
