"""One comparison from beginning to end: sample, measure, compare, write."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from talltree import checkpoint, yaml_text
from talltree.config import resumed, to_dict
from talltree.errors import RunError
from talltree.evals import comparison
from talltree.evals.comparison import Difference, named
from talltree.evals.results import metric_from_json
from talltree.evals.stories import judged
from talltree.evals.verdict import verdict, with_interval
from talltree.interrupt import Interrupts
from talltree.models.load import compute_device, resolve
from talltree.run import CONFIG, Run, environment, refuse_used
from talltree.stages import fresh
from talltree.stages.compare import draws, items, people, settings
from talltree.stages.compare.config import Config
from talltree.stages.compare.draws import Drawn
from talltree.stages.compare.measures import (
    Single,
    by_prompt,
    load_rewards,
    pooled,
    single,
    texts_by_prompt,
)
from talltree.stages.compare.sides import Plan, plan
from talltree.types import Reward

COMPARISON = "comparison.json"
SAMPLES = "samples.jsonl"
MAY_CHANGE = ("rewards", "judge", "results", "people", "people_samples")
"""What a resume may ask for anew: the draws stay as they are."""


def run(config: Config) -> None:
    """Writes comparison.json, samples.jsonl, summary.json and report.html; `resume` takes what is drawn.

    Raises TallTreeError for whatever the user can mend, as a rule before there is a folder. Exits with 130 or
    143 after SIGINT or SIGTERM.
    """
    started = time.monotonic()
    is_resumed = config.resume is not None
    folder = Path(config.resume or config.output_dir).expanduser()
    if is_resumed:
        config = _resumed(config, folder)
    else:
        refuse_used(folder)
    planned = plan(config)
    scorers = load_rewards(config.rewards)
    names = list(dict.fromkeys(side.setting for side in planned.sides))
    study = None if config.people is None else people.read(config.people, config.people_samples, names)
    content: dict[str, Any] = {"stage": "compare", "level": comparison.LEVEL, "notes": []}
    found = items.read(planned.results)
    if found:
        content["items"] = items.compare(found)
    if study is not None:
        content["people"] = people.compare(study)
    if config.judge is not None:
        resolve(config.judge)
    device = compute_device(config.device)
    looked = draws.look(planned, device)
    opened = Run.resume(folder, _say) if is_resumed else Run.create(folder, to_dict(config), environment())
    with opened as made, Interrupts() as interrupts:
        # What is asked for now is what the folder holds, and what the next resume goes on with.
        checkpoint.write_file(folder / CONFIG, yaml_text.dump(to_dict(config)).encode())
        made.write_summary({"stage": "compare", "stop_reason": None})
        drawn = draws.draw(planned, looked, folder, device, interrupts)
        if drawn:
            rows = [{"source": each.side.name, **row._asdict()} for each in drawn for row in each.completions]
            fresh.write_rows(folder / SAMPLES, rows)
            content |= _completions(config, planned, drawn, scorers)
        _write(made, content, started)
    for line in _lines(content):
        _say(line)
    _say(f"comparison: {folder}   page: {folder / 'report.html'}")


def _resumed(asked: Config, folder: Path) -> Config:
    """The config of the folder, with what is asked for anew. Raises RunError for another stage's folder."""
    kept = Run.open(folder).config
    if "people_samples" not in kept:
        raise RunError(f"{folder} is no compare folder; name the output_dir that compare wrote")
    plain = type(asked)()
    changed = [key for key in MAY_CHANGE if getattr(asked, key) != getattr(plain, key)]
    found = resumed(asked, kept, folder, changed)
    found.check()
    return found


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
    of_setting = settings.members(drawn)
    counts = {name: len(places) for name, places in of_setting.items()}
    has_seeds = max(counts.values()) > 1
    against = settings.differences(drawn, measured) if has_seeds else _one_by_one(drawn, measured)
    every = comparison.corrected([each for found in against.values() for each in found])
    places = iter(every)
    against = {name: [next(places) for _ in found] for name, found in against.items()}
    first = next(iter(of_setting))
    sampling = planned.sampling
    is_drawn = any(each.sha256 is not None for each in drawn)
    return {
        "models": [
            {"name": each.side.name, "source": each.side.source, "sha256": each.sha256} for each in drawn
        ],
        "settings": [
            {"name": name, "models": [drawn[at].side.name for at in at_places]}
            for name, at_places in of_setting.items()
        ],
        "prompts": len({each.prompt for each in drawn[0].completions}),
        "seeds": sorted({each.seed for each in drawn[0].completions}),
        "completions_per_model": len(drawn[0].completions),
        "temperature": sampling.temperature if is_drawn else None,
        "max_completion_length": sampling.max_completion_length if is_drawn else None,
        "cut": sampling.cut._asdict() if is_drawn and sampling.cut is not None else None,
        "reference": planned.reference,
        "judge": config.judge,
        "tests": sum(found.p_value is not None for found in every),
        "differences": {
            name: [comparison.as_json(each) for each in found] for name, found in against.items()
        },
        "verdict": {name: verdict(first, name, found) for name, found in against.items()},
        "notes": [
            *(settings.notes(counts) if has_seeds else _notes(drawn, every)),
            *_ends(planned, scorers),
        ],
    }


def _one_by_one(drawn: Sequence[Drawn], measured: Sequence[Sequence[Single]]) -> dict[str, list[Difference]]:
    """The first model against each other one, over prompts or completions."""
    sets = pooled()
    left = texts_by_prompt(drawn[0].completions)
    found = {}
    for each, values in zip(drawn[1:], measured[1:], strict=True):
        right = texts_by_prompt(each.completions)
        found[each.side.name] = [
            *_singles(drawn[0], measured[0], each, values),
            *(comparison.of_sets(one.name, one.unit, one.of_texts, left, right) for one in sets),
        ]
    return found


def _ends(planned: Plan, scorers: dict[str, Reward]) -> list[str]:
    """Where completions end, and what of the runs' own scores is not in the rewards, in words."""
    cut = planned.sampling.cut
    notes = []
    if cut is not None and any(side.kind == "model" for side in planned.sides):
        notes.append(f"A completion ends with the first {cut.token!r} at position {cut.after} or later.")
    if planned.missing_ends and scorers:
        listed = ", ".join(f"{name} {value:g}" for name, value in planned.missing_ends.items())
        notes.append(
            f"Rewards are those of the texts: what a run scored for a completion without its required end "
            f"({listed}) is no part of them; `ended` is the share that has one."
        )
    return notes


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


def _write(made: Run, content: dict[str, Any], started: float) -> None:
    written = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    checkpoint.write_file(made.folder / COMPARISON, written.encode())
    from talltree.report import comparison as page

    page.write(made.folder)
    made.write_summary(
        {
            "stage": "compare",
            "stop_reason": "everything is compared",
            "measures": _summary(content),
            "verdict": content.get("verdict", {}),
            "wall_time_seconds": time.monotonic() - started,
        }
    )


def _summary(content: dict[str, Any]) -> dict[str, Any]:
    """Of every measure the figure of each model or setting, and what is said of each difference."""
    first = next((each["name"] for each in content.get("settings", [])), "")
    found: dict[str, Any] = {}
    for name, differences in content.get("differences", {}).items():
        for each in differences:
            of_measure = found.setdefault(each["measure"], {"unit": each["left"]["unit"]})
            of_measure[first] = _plain(each["left"])
            of_measure[name] = _plain(each["right"]) | {
                "difference": _plain(each["difference"]), "p_holm": each["p_holm"], "said": each["said"],
            }  # fmt: skip
    return found


def _plain(metric: dict[str, Any]) -> dict[str, Any]:
    return {"mean": metric["value"], "low": metric["low"], "high": metric["high"]}


def _lines(content: dict[str, Any]) -> list[str]:
    """The table and the verdict for the terminal."""
    lines = []
    names = [each["name"] for each in content.get("settings", [])]
    for name, differences in content.get("differences", {}).items():
        lines.append(f"{name} against {names[0]}")
        width = max(len(named(each["measure"])) for each in differences)
        lines += [f"  {named(each['measure']):<{width}}  {_cells(each)}" for each in differences]
        lines += [f"  {sentence}" for sentence in content["verdict"][name]]
    notes = list(content["notes"])
    for part in ("items", "people"):
        lines += content.get(part, {}).get("verdict", [])
        notes += content.get(part, {}).get("notes", [])
    return lines + notes


def _cells(each: dict[str, Any]) -> str:
    left, right, apart = (metric_from_json(each[key]) for key in ("left", "right", "difference"))
    return f"{with_interval(left)} -> {with_interval(right)}: {with_interval(apart, True)} {apart.unit}"


def _say(text: str) -> None:
    print(text, flush=True)
