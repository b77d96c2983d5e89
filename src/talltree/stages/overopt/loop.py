"""One measurement from beginning to end: sample each source once, score, fit, advise, write."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from talltree import checkpoint, rewards, yaml_text
from talltree.config import resumed, to_dict
from talltree.errors import RunError
from talltree.evals.comparison import MANY_PROMPTS
from talltree.interrupt import EXIT_STATUS, Interrupts
from talltree.models.load import compute_device
from talltree.report import overoptimisation as page
from talltree.run import CONFIG, Run, environment, refuse_used
from talltree.stages import drawn, fresh
from talltree.stages.fresh import Completion, Loaded, Sampling
from talltree.stages.overopt import curves, gold, people
from talltree.stages.overopt.config import PEOPLE, Config
from talltree.stages.overopt.sources import BASE, Plan, Source, load_source, plan, require_whole

SAMPLES = "samples.jsonl"
PAIRS = "pairs.jsonl"
RESULT = "overopt.json"
MAY_CHANGE = ("gold", "proxy", "judgements")
"""What a resume may ask for anew: the draws stay as they are and are scored again."""


def run(config: Config) -> None:
    """Writes overopt.json, samples.jsonl, summary.json and report.html; `resume` goes on with what is drawn.

    With gold people and no judgements it ends after sampling. Raises TallTreeError for whatever the user can
    mend. Exits with 130 or 143 after SIGINT or SIGTERM; what is drawn is kept.
    """
    started = time.monotonic()
    if config.resume is None:
        folder = Path(config.output_dir).expanduser()
        refuse_used(folder)
    else:
        opened = Run.open(Path(config.resume).expanduser())
        if opened.config.get("gold") is None:
            raise RunError(f"{opened.folder} is no overopt folder; name the output_dir that overopt wrote")
        folder, config = opened.folder, resumed(config, opened.config, opened.folder, MAY_CHANGE)
        if config.gold != PEOPLE:
            config = replace(config, judgements=None)
    planned = plan(config)
    _check_rewards(config, planned)
    reference = fresh.load(planned.reference, compute_device(config.device))
    drawn.require_fit(reference, planned.prompts, planned.sampling)
    if config.resume is None:
        require_whole(planned.sources, reference)
    opening = (
        Run.create(folder, to_dict(config), environment())
        if config.resume is None and not folder.joinpath("config.yaml").is_file()
        else Run.resume(folder, _say)
    )
    with opening as made, Interrupts() as interrupts:
        # What is asked for now is what the folder holds, and what the next resume goes on with.
        checkpoint.write_file(folder / CONFIG, yaml_text.dump(to_dict(config)).encode())
        sampled = _drawn(planned, reference, made.folder, interrupts)
        rows = [{"source": name, **row._asdict()} for name, each in sampled.items() for row in each]
        fresh.write_rows(folder / SAMPLES, rows)
        if config.gold == PEOPLE and config.judgements is None:
            fresh.write_rows(folder / PAIRS, people.pairs_to_judge(sampled))
            made.write_summary({"stage": "overopt", "stop_reason": None, "waiting_for": "judgements"})
            for line in _to_judge(folder):
                _say(line)
            return
        content = _measured(config, planned, sampled)
        written = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        checkpoint.write_file(folder / RESULT, written.encode())
        page.write(folder)
        for curve in content["curves"]:
            _say(" ".join(curve["advice"]))
        for note in content["notes"]:
            _say(note)
        made.write_summary(
            {
                "stage": "overopt",
                "stop_reason": "every source is measured",
                "advice": {curve["name"]: curve["advice"] for curve in content["curves"]},
                "wall_time_seconds": time.monotonic() - started,
            }
        )
    _say(f"curves: {folder / RESULT}   page: {folder / 'report.html'}")


def _check_rewards(config: Config, planned: Plan) -> None:
    """A misspelt reward, or judgements that are not there, are to show before an hour of sampling."""
    for spec in (planned.proxy, *([] if config.gold in (None, PEOPLE) else [str(config.gold)])):
        rewards.load(spec)
    if config.judgements is not None:
        people.read(config.judgements)


# Sampling


def _drawn(
    planned: Plan, reference: Loaded, folder: Path, interrupts: Interrupts
) -> dict[str, list[Completion]]:
    """Completions by source, the reference first; each is kept, and a resume reads it instead."""
    kept = drawn.Kept(folder / drawn.DRAWN, _say)
    identity = drawn.of_model(reference)
    found: dict[str, list[Completion]] = {}
    for number, source in enumerate([None, *planned.sources], 1):
        name = BASE if source is None else source.name
        sampling = _sampling(planned, source)
        told = identity if source is None else {"manifest_sha256": _manifest(source)}
        key = drawn.key_of(name, told, identity, planned.prompts, sampling)
        completions = kept.read(key)
        if completions is None:
            if interrupts.requested is not None:
                _say(f"{interrupts.requested}: continue with talltree overopt --resume {folder}")
                raise SystemExit(EXIT_STATUS[interrupts.requested])
            began, total = time.monotonic(), 1 + len(planned.sources)
            _say(f"{number} of {total}: {name}, drawing")  # the first is the longest by far
            completions = _draw(planned, source, reference)
            kept.write(key, completions)
            taken = time.monotonic() - began
            _say(f"{number} of {total}: {name}, {len(completions)} completions in {taken:.1f} s")
        found[name] = completions
    return found


def _manifest(source: Source) -> str:
    """What tells a checkpoint: a run that was rewound has another one of the same step."""
    if not (source.folder / checkpoint.MANIFEST).is_file():
        checkpoint.verify(source.folder)
    return checkpoint.file_sha256(source.folder / checkpoint.MANIFEST)


def _sampling(planned: Plan, source: Source | None) -> Sampling:
    """How a checkpoint is sampled; the reference writes more, for best-of-n."""
    if source is not None:
        return planned.sampling
    many = max(2 * planned.best_of, planned.sampling.num_generations)
    return planned.sampling._replace(num_generations=many)


def _draw(planned: Plan, source: Source | None, reference: Loaded) -> list[Completion]:
    sampling = _sampling(planned, source)
    if source is None:
        return fresh.draw(reference, planned.prompts, sampling, reference)
    loaded = load_source(source, reference)
    fresh.require_same_tokens(loaded, reference)
    return fresh.draw(loaded, planned.prompts, sampling, reference)


# Measuring


def _measured(config: Config, planned: Plan, sampled: Mapping[str, Sequence[Completion]]) -> dict[str, Any]:
    proxy = gold.scored(planned.proxy, sampled, planned.prompts, planned.missing_end)
    true = (
        gold.scored(str(config.gold), sampled, planned.prompts, planned.missing_end)
        if config.judgements is None
        else people.judged(config.judgements, sampled)
    )
    found = [
        curves.run_curve(name, [each for each in planned.sources if each.run == name], sampled, proxy, true)
        for name in dict.fromkeys(source.run for source in planned.sources)
    ]
    notes = [*_notes(sampled), *_ends(planned, sampled, is_gold_scored=config.judgements is None)]
    if planned.best_of and true.per_sample is None:
        notes.append("Best-of-n is left out: win rates say nothing of single samples; ratings would.")
    elif planned.best_of and true.per_sample is not None and proxy.per_sample is not None:
        best = curves.best_of_curve(
            sampled[BASE], proxy.per_sample[BASE], true.per_sample[BASE], planned.best_of
        )
        if best is None:
            notes.append(
                f"Best-of-n is left out: no prompt has more than {planned.best_of} samples with both rewards."
            )
        else:
            found.append(best)
    return {
        "stage": "overopt",
        "proxy": planned.proxy,
        "gold": config.gold,
        "reference": planned.reference,
        "prompts": len({each.prompt for each in sampled[BASE]}),
        "samples": {name: len(each) for name, each in sampled.items()},
        "temperature": planned.sampling.temperature,
        "max_completion_length": planned.sampling.max_completion_length,
        "cut": None if planned.sampling.cut is None else planned.sampling.cut._asdict(),
        "missing_eos_penalty": planned.missing_end,
        "curves": [curves.as_json(curve, curves.fitted(curve)) for curve in found],
        "notes": notes,
    }


def _notes(sampled: Mapping[str, Sequence[Completion]]) -> list[str]:
    prompts = len({each.prompt for each in sampled[BASE]})
    notes = [
        (
            "KL is logp - ref_logp summed over a completion, in nats, averaged over samples; of best-of-n it "
            "is log n - (n - 1) / n. Intervals are 95%, percentile bootstrap."
        ),
        "One training stands behind each run: the intervals leave out what training again would change.",
    ]
    if prompts < MANY_PROMPTS:
        these = "this one prompt" if prompts == 1 else f"these {prompts} prompts"
        notes.append(f"Draws are what is resampled, so intervals hold for {these} and say nothing of others.")
    else:
        notes.append(f"Intervals are over {prompts} prompts.")
    return notes


def _to_judge(folder: Path) -> list[str]:
    """How people come to judge the samples."""
    new = "talltree annotate new STUDY"
    return [
        f"samples: {folder / SAMPLES}   pairs with the reference's: {folder / PAIRS}",
        f"have them judged: {new} --kind pair --samples {folder / PAIRS} (win rates), or",
        f"                  {new} --kind rating --samples {folder / SAMPLES} (ratings, best-of-n too)",
        f"then: talltree overopt --resume {folder} --judgements STUDY",
    ]


def _ends(planned: Plan, sampled: Mapping[str, Sequence[Completion]], is_gold_scored: bool) -> list[str]:
    """Where completions end and what one without its end is worth, in words."""
    notes = []
    cut = planned.sampling.cut
    if cut is not None:
        notes.append(f"A completion ends with the first {cut.token!r} at position {cut.after} or later.")
    if planned.missing_end is not None:
        every = [each for completions in sampled.values() for each in completions]
        without = sum(not each.ended for each in every)
        where = "proxy and gold" if is_gold_scored else "the proxy (people judged what they read)"
        notes.append(
            f"A completion without its required end is {planned.missing_end:g} in {where}, whatever a reward "
            f"says: {without:,} of {len(every):,} here."
        )
        if planned.best_of and without:
            notes.append("These tie, and with ties the KL of best-of-n is an upper bound.")
    return notes


def _say(text: str) -> None:
    print(text, flush=True)
