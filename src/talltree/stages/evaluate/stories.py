"""The story task: stories of each seed sampled and kept, then measured, by a judge too if one is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from talltree.data.prompts import literal_prompts, read_prompts
from talltree.data.sources import OpenSource, read
from talltree.errors import DataError
from talltree.evals import stories
from talltree.evals.heldout import documents
from talltree.evals.novelty import Copied, copied
from talltree.evals.results import TaskResult
from talltree.stages.evaluate.config import StoryOptions, TextOptions
from talltree.stages.evaluate.models import Loaded, Place, load, place
from talltree.stages.evaluate.parts import Part, Progress, Task, last
from talltree.stages.evaluate.texts import open_texts, texts_key
from talltree.types import Prompt

STORIES_VERSION = 1


def stories_task(options: StoryOptions) -> Task:
    """A part for each seed, and one that measures all. Raises DataError or ModelError for what is missing."""
    prompts = _prompts(options)
    opened = open_texts(options.training, "stories.training.data") if options.training.data else None
    if opened is not None:
        documents(opened, 1)  # refuses an empty corpus now, not after the sampling
    judge = None if options.judge is None else place(options.judge)
    sampled = [_sampled(options, prompts, seed) for seed in options.seeds]
    decides = [
        STORIES_VERSION,
        [part.options for part in sampled],
        options.ngram,
        options.prompt_ngram,
        None if judge is None else _judge_key(judge),
    ]
    data = [[prompt.text for prompt in prompts], opened and texts_key(opened, options.training)]

    def measure(loaded: Loaded, results: Sequence[TaskResult], progress: Progress) -> TaskResult:
        return _measure(options, judge, opened, loaded, results, progress)

    return Task("stories", [*sampled, Part("measures", data, decides, measure)], last)


def _prompts(options: StoryOptions) -> list[Prompt]:
    every = literal_prompts([options.prompt]) if options.prompts is None else read_prompts(options.prompts)
    texts = list(dict.fromkeys(prompt.text for prompt in every))[: options.max_prompts]
    return [Prompt(text) for text in texts]


def _judge_key(judge: Place) -> object:
    import torch

    from talltree.evals.cache import key

    return key(load(judge, torch.device("cpu")).identity)


def _sampled(options: StoryOptions, prompts: Sequence[Prompt], seed: int) -> Part:
    def compute(loaded: Loaded, _: Sequence[TaskResult], progress: Progress) -> TaskResult:
        return TaskResult({}, _sample(options, prompts, seed, loaded, progress))

    names = ("samples", "max_completion_length", "temperature", "batch_size")
    decides = [STORIES_VERSION, seed, {name: asdict(options)[name] for name in names}]
    return Part(f"seed {seed}", [prompt.text for prompt in prompts], decides, compute)


def _sample(
    options: StoryOptions, prompts: Sequence[Prompt], seed: int, loaded: Loaded, progress: Progress
) -> list[stories.Row]:
    """The same prompts for every model: one that a model cannot hold is refused, not left out."""
    import torch

    from talltree.models.load import stop_ids
    from talltree.rollout import collect, encode_prompts

    try:
        ids_of = encode_prompts(loaded.tokenizer, loaded.model, prompts, options.max_completion_length)
    except DataError as error:
        raise DataError(
            f"{loaded.place.label}: {error}; every model gets the same prompts, so none is left out"
        ) from None
    generator = torch.Generator().manual_seed(seed)
    repeated = [prompt for prompt in prompts for _ in range(options.samples)]
    rows: list[stories.Row] = []
    for at in range(0, len(repeated), options.batch_size):
        drawn = collect(
            loaded.model,
            loaded.tokenizer,
            repeated[at : at + options.batch_size],
            ids_of,
            max_completion_length=options.max_completion_length,
            stop_ids=stop_ids(loaded.model, loaded.tokenizer),
            temperature=options.temperature,
            generator=generator,
        )
        lengths = drawn.completion_mask_NT.sum(1).tolist()
        rows += [
            {"prompt": prompt.text, "completion": text, "seed": seed, "tokens": length, "ended": ended}
            for prompt, text, length, ended in zip(
                drawn.prompts, drawn.completions, lengths, drawn.ended_N.tolist(), strict=True
            )
        ]
        progress.heard(sum(lengths))
    return rows


def _measure(
    options: StoryOptions,
    judge: Place | None,
    opened: OpenSource | None,
    loaded: Loaded,
    results: Sequence[TaskResult],
    progress: Progress,
) -> TaskResult:
    rows = [row for result in results for row in result.rows]
    notes = []
    found: list[Copied] | None = None
    if opened is not None:
        found, words = _copied(options.training, opened, rows)
        notes.append(
            f"Looked for copies in {words:,} words of {opened.source.label}, in lower case and without "
            f"punctuation; copied_from_corpus is the share of runs of {options.ngram} words."
        )
    rows = stories.describe(rows, found, options.ngram, options.prompt_ngram)
    notes.append(f"copied_from_prompt is the share of runs of {options.prompt_ngram} words.")
    if judge is not None:
        reader = load(judge, loaded.model.device)
        rows = list(stories.judged(reader.model, reader.tokenizer, rows, progress.heard))
        same = reader.identity == loaded.identity
        notes.append(
            f"The judge is {judge.label}"
            + (", the model itself: it finds its own texts likely, whatever they are like." if same else ".")
        )
        longer = sum(row["judge_windows"] > 1 for row in rows)
        if longer:
            notes.append(
                f"{longer:,} of {len(rows):,} stories are longer than the judge's context: read in windows."
            )
    measured = stories.summarise(rows)
    return measured._replace(notes=(*measured.notes, *notes))


def _copied(
    options: TextOptions, opened: OpenSource, rows: Sequence[stories.Row]
) -> tuple[list[Copied], int]:
    from itertools import islice

    texts = (document.text for document in read(opened) if document.text)
    return copied([row["completion"] for row in rows], islice(texts, options.max_documents))
