"""Action `new`: samples become tuples by a balanced design, tuples a study with a private link for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from talltree import samples as run_samples
from talltree.annotation import designs
from talltree.annotation.store import Store
from talltree.annotation.study import Study, StudyTuple, make_tuple
from talltree.console import printable
from talltree.data.documents import jsonl_rows
from talltree.errors import DataError
from talltree.stages.annotate.config import Config, listed


class Sample(NamedTuple):
    """A completion of a prompt, and what wrote it."""

    prompt: str
    completion: str
    source: str


@dataclasses.dataclass
class Group:
    """Texts that may stand in one tuple, with their sources; no two are the same."""

    prompt: str
    texts: list[str] = dataclasses.field(default_factory=list)
    sources: list[str] = dataclasses.field(default_factory=list)


def run(config: Config) -> None:
    """Makes the study and prints what is in it and everybody's link."""
    found = [each for path in listed(config.samples) for each in read(Path(path).expanduser(), config.step)]
    ready = [each for each in found if isinstance(each, StudyTuple)]
    drawn = [each for each in found if isinstance(each, Sample)]
    if ready and drawn:
        raise DataError(
            f"samples: {len(ready)} rows have `candidates` and {len(drawn)} have one completion each; "
            "use files of one form"
        )
    tuples = ready or design(drawn, config)
    if config.tuples is not None and len(tuples) < config.tuples:
        raise DataError(
            f"tuples {config.tuples}: the samples give {len(tuples)}; raise appearances, or give more samples"
        )
    tuples = tuples[: config.tuples]
    study = Study(
        kind=config.kind,
        tuples=tuple(tuples),
        question=config.question,
        overlap=config.overlap,
        repeats=config.repeats,
        seed=config.seed,
        criteria=tuple(config.criteria),
        points=config.points,
        ties=config.ties,
    )
    with Store.create(config.folder, study) as store:
        for name in listed(config.annotators):
            store.add_annotator(name)
        print(
            f"{config.folder}: {len(tuples):,} tuples of {study.k}, kind {study.kind}, {study.overlap} "
            f"annotator{'s' if study.overlap > 1 else ''} each; asked: {printable(store.study.question)}"
        )
        for annotator in store.annotators():
            print(f"  {annotator.name}: {link(config, annotator.token)}")
    names = "" if config.annotators else " --annotators '[Anna, Ben]'"
    print(f"next: talltree annotate serve {config.folder}{names}")


def link(config: Config, token: str) -> str:
    """The private link that the page will have at the address of the config."""
    return f"http://{config.serving.host}:{config.serving.port}/a/{token}"


def read(path: Path, step: int | None) -> Iterator[Sample | StudyTuple]:
    """The samples of a run folder, a .parquet or a .jsonl file. Raises DataError for anything else."""
    if path.is_dir():
        yield from _from_table(run_samples.read(path), str(path), step)
    elif not path.is_file():
        raise DataError(f"samples {path} not found; give a run folder, or a .parquet or .jsonl file")
    elif path.suffix == ".parquet":
        from pyarrow import ArrowException, parquet

        try:
            table = parquet.read_table(path)
        except (ArrowException, OSError) as error:
            raise DataError(f"samples {path} cannot be read as parquet: {str(error)[:80]}") from None
        yield from _from_table(table, str(path), step)
    elif path.suffix == ".jsonl":
        for where, row in jsonl_rows(path):
            yield from _from_row(row, where, path.stem)
    else:
        raise DataError(f"samples {path}: ending {path.suffix!r} is not known; use .parquet or .jsonl")


def _from_table(table: Any, where: str, step: int | None) -> Iterator[Sample]:
    import pyarrow.compute as pc

    lacking = [name for name in ("prompt", "completion") if name not in table.column_names]
    if lacking or table.num_rows == 0:
        raise DataError(
            f"samples {where}: " + (f"no column {lacking[0]!r}" if lacking else "no samples there")
        )
    if "step" in table.column_names:
        step = pc.max(table["step"]).as_py() if step is None else step
        table = table.filter(pc.field("step") == step)
        if table.num_rows == 0:
            raise DataError(f"samples {where}: no samples of step {step}; leave --step out to take the last")
    for prompt, completion in zip(table["prompt"].to_pylist(), table["completion"].to_pylist(), strict=True):
        yield Sample(prompt, completion, where)


def _from_row(row: Mapping[str, Any], where: str, file: str) -> Iterator[Sample | StudyTuple]:
    prompt = _text(row.get("prompt", ""), "prompt", where)
    source = _text(row.get("source") or row.get("model") or file, "source", where)
    if "candidates" in row:
        candidates = _texts(row["candidates"], "candidates", where)
        sources = _texts(row["sources"], "sources", where) if row.get("sources") is not None else ()
        yield make_tuple(prompt, candidates, sources)
    elif "completions" in row:
        for each in _texts(row["completions"], "completions", where):
            yield Sample(prompt, each, source)
    elif "completion" in row:
        yield Sample(prompt, _text(row["completion"], "completion", where), source)
    elif "text" in row:
        text = _text(row["text"], "text", where)
        # `talltree sample` strips its texts, and so the start of a prompt that began with white space.
        start = next((each for each in (prompt, prompt.lstrip()) if text.startswith(each)), None)
        if start is None:
            raise DataError(f"{where}: the text does not start with its prompt {prompt[:40]!r}")
        yield Sample(prompt, text[len(start) :], source)
    else:
        have = ", ".join(row) or "none"
        raise DataError(
            f"{where}: no column completion, completions, candidates or text; columns there: {have}"
        )


def _text(value: object, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: {name} is {str(value)[:40]!r} ({type(value).__name__}), not a text")
    return value


def _texts(value: object, name: str, where: str) -> list[str]:
    if not isinstance(value, list):
        raise DataError(f"{where}: {name} is {type(value).__name__}, not a list of texts")
    return [_text(each, name, where) for each in value]


def design(found: Sequence[Sample], config: Config) -> list[StudyTuple]:
    """Tuples of k candidates of one prompt, balanced; what cannot be used is left out, and said.

    Raises DataError where nothing is left.
    """
    written = [each for each in found if each.completion.strip()]
    groups, repeated = _groups(written, config.across_sources)
    enough = {key: group for key, group in groups.items() if len(group.texts) >= config.size}
    if not enough:
        most = max((len(group.texts) for group in groups.values()), default=0)
        raise DataError(
            f"no prompt has {config.size} different samples"
            + (" of different sources" if config.across_sources else "")
            + f", the most is {most}; sample more of each prompt, or lower --k"
        )
    left_out = [
        (len(found) - len(written), "empty samples"),
        (repeated, "samples that repeat another word for word"),
        (len(groups) - len(enough), f"prompts with fewer than {config.size} samples"),
    ]
    for count, what in left_out:
        if count:
            print(f"left out: {count:,} {what}")
    items = {key: group.texts for key, group in enough.items()}
    drawn = designs.design(items, config.size, config.appearances, config.seed)
    spread = designs.spread(drawn, items)
    print(
        f"design: {spread.items:,} candidates in {spread.per_item[0]} to {spread.per_item[1]} tuples each, "
        f"pairs of one prompt in {spread.per_pair[0]} to {spread.per_pair[1]}"
    )
    return [_tuple(enough[each.prompt], each.items) for each in drawn]


def _tuple(group: Group, items: Sequence[int]) -> StudyTuple:
    return make_tuple(group.prompt, [group.texts[i] for i in items], [group.sources[i] for i in items])


def _groups(found: Sequence[Sample], across: bool) -> tuple[dict[str, Group], int]:
    """Samples by prompt, or by prompt and number within their source; and how many repeat another."""
    groups: dict[str, Group] = {}
    counts: dict[tuple[str, str], int] = {}
    repeated = 0
    for each in found:
        number = counts.get((each.prompt, each.source), 0)
        counts[each.prompt, each.source] = number + 1
        key = f"{number}\n{each.prompt}" if across else each.prompt
        group = groups.setdefault(key, Group(each.prompt))
        if each.completion in group.texts:
            repeated += 1
            continue
        group.texts.append(each.completion)
        group.sources.append(each.source)
    return groups, repeated
