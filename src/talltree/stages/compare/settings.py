"""Settings that were trained with several seeds: one figure a model, and what is known over the models."""

from __future__ import annotations

from collections.abc import Sequence

from talltree.evals import comparison
from talltree.evals.comparison import Difference
from talltree.evals.seeds import interval_words, over_seeds
from talltree.stages.compare.draws import Drawn
from talltree.stages.compare.measures import Single, by_prompt, pooled, texts_by_prompt


def members(drawn: Sequence[Drawn]) -> dict[str, list[int]]:
    """The places of the models of each setting, in the order in which settings first come."""
    found: dict[str, list[int]] = {}
    for place, each in enumerate(drawn):
        found.setdefault(each.side.setting, []).append(place)
    return found


def differences(drawn: Sequence[Drawn], measured: Sequence[Sequence[Single]]) -> dict[str, list[Difference]]:
    """The first setting against each other one, of every measure that all models have.

    A model's figure is its mean over prompts, of the prompts that all have values of, or that of all its
    completions pooled.
    """
    (first, left), *others = members(drawn).items()
    figures = {**_means(drawn, measured), **_pools(drawn)}
    names = [_short(each) for each in drawn]
    return {
        other: [
            comparison.of_seeds(
                measure,
                unit,
                {names[at]: values[at] for at in left},
                {names[at]: values[at] for at in right},
            )
            for (measure, unit), values in figures.items()
        ]
        for other, right in others
    }


def _short(drawn: Drawn) -> str:
    """A model's name within its setting."""
    return drawn.side.name.removeprefix(f"{drawn.side.setting}/")


def _means(
    drawn: Sequence[Drawn], measured: Sequence[Sequence[Single]]
) -> dict[tuple[str, str], list[float]]:
    found: dict[tuple[str, str], list[float]] = {}
    for measure in measured[0]:
        of_all = [
            by_prompt(each.completions, same.values)
            for each, singles in zip(drawn, measured, strict=True)
            for same in singles
            if same.name == measure.name
        ]
        shared = [prompt for prompt in of_all[0] if all(groups.get(prompt) for groups in of_all)]
        if len(of_all) == len(drawn) and shared:
            found[measure.name, measure.unit] = [
                sum(sum(groups[prompt]) / len(groups[prompt]) for prompt in shared) / len(shared)
                for groups in of_all
            ]
    return found


def _pools(drawn: Sequence[Drawn]) -> dict[tuple[str, str], list[float]]:
    texts = [
        [text for group in texts_by_prompt(each.completions).values() for text in group] for each in drawn
    ]
    return {(measure.name, measure.unit): [measure.of_texts(each) for each in texts] for measure in pooled()}


def notes(counts: dict[str, int]) -> list[str]:
    """What the intervals are over; counts: models of each setting."""
    kinds = [over_seeds([0.0] * count).kind for count in counts.values()]
    listed = ", ".join(f"{name}: {count}" for name, count in counts.items())
    found = [
        (
            f"Each model is one figure, and intervals are over training seeds ({listed} models): "
            f"{interval_words(kinds)}. Differences are Welch's. Prompts and sampling seeds are the same for "
            "all and taken as they are: the intervals say nothing of other prompts."
        )
    ]
    single = [name for name, count in counts.items() if count == 1]
    if single and len(single) < len(counts):
        found.append(
            f"{', '.join(single)}: one model, taken as it is; what training it again changes is left out."
        )
    if any(count == 2 for count in counts.values()):
        found.append(
            "Two seeds have a range and no interval, so nothing is claimed of them; train three or more."
        )
    return found
