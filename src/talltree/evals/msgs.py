"""The Mixed Signals Generalization Set: does a classifier go by grammar or by the surface?

Trained on sentences where a linguistic and a surface feature always agree, scored where they disagree.
Warstadt et al. 2020, arXiv:2010.05358.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from talltree.errors import DataError
from talltree.evals.classification_data import Found, local_split, looked_for
from talltree.evals.classification_items import Item, TaskData, Text, label_of, string_of

LINGUISTIC = {
    "main_verb": "is the main verb in its -ing form?",
    "syntactic_category": "is there an adjective?",
    "control_raising": "is it the control construction?",
    "irregular_form": "is there an irregular past verb?",
    "antonym": "is there a pair of antonyms?",
}
"""The published set has the first four; its generator makes the fifth as well."""
SURFACE = {
    "lexical_content_the": "is `the` in it?",
    "relative_position": "does `the` stand before `a`?",
    "absolute_token_position": "is `the` the first word?",
    "length": "is it longer than a number of words?",
    "title_case": "is it in title case?",
}
ALIASES = {
    "relative_position": ("relative_token_position",),
    "absolute_token_position": ("absolute_position",),
    "title_case": ("titlecase",),
    "antonym": ("antonyms",),
}
"""Other names that the published folders have for a feature."""
MEASURES = ("matthews", "accuracy")
LABELS = ("0", "1")
ROOMS = ("msgs", "msgs_filtered")
PAGE = "msgs.zip from the folder data of https://github.com/nyu-mll/msgs"

CONTROLS = tuple(f"{feature}_control" for feature in (*LINGUISTIC, *SURFACE))
PAIRS = {f"{one}_{other}": (one, other) for one in LINGUISTIC for other in SURFACE}
TASKS = {
    **{f"{feature}_control": about for feature, about in (LINGUISTIC | SURFACE).items()},
    **{name: f"{LINGUISTIC[one]} or: {SURFACE[other]}" for name, (one, other) in PAIRS.items()},
}
"""Ten controls and 25 ambiguous pairs, 9 and 20 of which are published."""


def folder_names(name: str) -> tuple[str, ...]:
    """The names that a task's folder may have, its own first."""
    if name in CONTROLS:
        feature = name.removesuffix("_control")
        return tuple(f"{each}_control" for each in (feature, *ALIASES.get(feature, ())))
    one, other = PAIRS[name]
    firsts, seconds = (one, *ALIASES.get(one, ())), (other, *ALIASES.get(other, ()))
    return tuple(f"{first}_{second}" for first in firsts for second in seconds)


def read(name: str, folder: Path | None) -> TaskData:
    """The rows of a task from a local folder, as published (NAME/train.jsonl) or NAME.train.json.

    Scored are, for a pair, "": where the features disagree; in_domain and out_of_domain: where they agree, in
    sentences like the training ones and in others. For a control, "": sentences unlike the training ones;
    in_domain: like them. Raises DataError that says what is missing, where it was looked for and what to
    fetch.
    """
    if folder is None:
        raise DataError(
            f"msgs:{name} is in no dataset of the hub; fetch {PAGE}, unpack it and give its folder as data"
        )
    train, test = (_found(name, folder, split) for split in ("train", "test"))
    is_pair = name in PAIRS
    scored: dict[str, list[Item]] = {}
    for number, (where, row) in enumerate(test.rows):
        part = _part(row, is_pair, where)
        scored.setdefault(part, []).append(_item(row, f"test:{number}", where))
    if "" not in scored:
        wanted = "where linguistic and surface feature disagree" if is_pair else "with condition `test`"
        raise DataError(
            f"{test.source}: none of its {len(test.rows)} rows is one {wanted}, so nothing can be scored"
        )
    notes: tuple[str, ...] = ()
    if is_pair and (settled := sum(_disagree(row, where) for where, row in train.rows)):
        notes = (
            f"{settled} of {len(train.rows)} training rows are not ambiguous: their two features disagree.",
        )
    ordered: dict[str, list[Item]] = {
        part: scored[part] for part in ("", "in_domain", "out_of_domain") if part in scored
    }
    fitted = [_item(row, f"train:{number}", where) for number, (where, row) in enumerate(train.rows)]
    if not fitted:
        raise DataError(f"{train.source} holds no rows; fetch it again")
    return TaskData(fitted, ordered, (train.source, test.source), notes)


def _part(row: Mapping[str, Any], is_pair: bool, where: str) -> str:
    condition = row.get("condition")
    if is_pair:
        if _disagree(row, where):
            return ""
        return "in_domain" if condition == "training" else "out_of_domain"
    return "in_domain" if condition == "training" else ""


def _disagree(row: Mapping[str, Any], where: str) -> bool:
    both = [label_of(row.get(f"{kind}_feature_label"), LABELS, where) for kind in ("linguistic", "surface")]
    return both[0] != both[1]


def _item(row: Mapping[str, Any], identity: str, where: str) -> Item:
    """The label is the linguistic feature's, in a surface feature's control the surface feature's."""
    sentence = string_of(row, "sentence", where)
    values = (row.get("linguistic_feature_label"), row.get("surface_feature_label"), row.get("label"))
    label = next((value for value in values if value is not None), None)
    paradigm = row.get("paradigmID")
    return Item(
        id=identity,
        texts=(Text((sentence,)),),
        label=label_of(label, LABELS, where),
        group=sentence if paradigm is None else f"paradigm {paradigm}",
    )


def _found(name: str, folder: Path, split: str) -> Found:
    found = local_split(folder, ROOMS, folder_names(name), split)
    if found is None:
        raise DataError(
            f"msgs:{name} has no {split} data: {looked_for(folder, ROOMS, name, split)}; fetch {PAGE}"
        )
    return found
