"""Supervised examples from a corpus: pairs, whole texts, and continuations: texts divided after a sentence.

A prompt's text ends where its completion's begins: a space between the two belongs to the completion, because
that is where tokenizers put it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from talltree.data.corpora import Corpus
from talltree.data.documents import Document
from talltree.data.sentences import sentence_ends, sentence_starts
from talltree.data.sources import OpenSource, columns_there
from talltree.errors import DataError

Count = Callable[[str], int]
"""Tokens of a text as a prompt."""


class Example(NamedTuple):
    """prompt + completion is the text; `ends` says that the text ends there, so that EOS follows."""

    prompt: str
    completion: str
    ends: bool
    where: str

    @property
    def key(self) -> str:
        """What must not stand on both sides of a split: the prompt, or the text where there is none."""
        return self.prompt or self.completion


class SentenceSplit(NamedTuple):
    """How a text is divided into continuation examples.

    prompt_sentences: sentences in a prompt; prompt_tokens: instead, as many as this many tokens hold;
    example_tokens: a longer text becomes several examples, each of whole sentences; None: always one.
    """

    prompt_sentences: int | None
    prompt_tokens: int | None
    example_tokens: int | None


def with_pairs(corpus: Corpus) -> Corpus:
    """The corpus with rows of `prompt` and `completion` read as pairs, unless its options name columns."""
    return replace(corpus, sources=tuple(map(_with_pairs, corpus.sources)))


def _with_pairs(opened: OpenSource) -> OpenSource:
    source = opened.source
    is_open = not source.completion and (source.column, source.documents) == ("text", "auto")
    if not is_open or not {"prompt", "completion"} <= set(columns_there(opened)):
        return opened
    return opened._replace(source=replace(source, prompt="{prompt}", completion="{completion}"))


def by_first_prompt(corpus: Corpus, plan: SentenceSplit, count: Count) -> Corpus:
    """The corpus in which texts whose first examples have one prompt stand in one split."""

    def first_prompt(document: Document) -> str:
        text = document.text
        found = (_continuation(text, piece, plan, count) for piece in _pieces(text, plan, count))
        return next((pair[0] for pair in found if pair is not None), text)

    return replace(corpus, key=first_prompt)


def whole(documents: Iterable[Document]) -> list[Example]:
    """Each document as one example."""
    return [Example(each.prompt, each.completion, True, each.where) for each in documents]


def continuations(
    documents: Iterable[Document], plan: SentenceSplit, count: Count
) -> tuple[list[Example], int]:
    """Texts divided after a sentence, and how many pieces had no completion left beside their prompt."""
    examples: list[Example] = []
    undivided = 0
    for document in documents:
        found = [
            _continuation(document.text, piece, plan, count) for piece in _pieces(document.text, plan, count)
        ]
        undivided += found.count(None)
        examples += [
            # Only the text's own end is one: a piece that goes on must not teach to stop.
            Example(*pair, number == len(found), document.where)
            for number, pair in enumerate(found, 1)
            if pair is not None
        ]
    return examples, undivided


def without_shared(train: Sequence[Example], held_out: Sequence[Example]) -> list[Example]:
    """Train without the examples whose prompts are held out. Raises DataError if none is left."""
    keys = {each.key for each in held_out}
    kept = [each for each in train if each.key not in keys]
    if train and not kept:
        raise DataError(
            f"all {len(train)} training examples have prompts that are held out; give others of either"
        )
    return kept


class _Piece(NamedTuple):
    """Some consecutive sentences of a text: where they start, and where each of them ends."""

    start: int
    ends: list[int]


def _pieces(text: str, plan: SentenceSplit, count: Count) -> Iterator[_Piece]:
    starts, ends = sentence_starts(text), sentence_ends(text)
    if plan.example_tokens is None:
        yield _Piece(starts[0], ends)
        return
    first = 0
    for last in range(len(ends)):
        if last > first and count(text[starts[first] : ends[last]]) + 1 > plan.example_tokens:
            yield _Piece(starts[first], ends[first:last])
            first = last
    yield _Piece(starts[first], ends[first:])


def _continuation(text: str, piece: _Piece, plan: SentenceSplit, count: Count) -> tuple[str, str] | None:
    """Prompt and completion of a piece; None where one of them would be without a sentence."""
    start, ends = piece
    if plan.prompt_tokens is None:
        sentences = plan.prompt_sentences or 1
    else:
        sentences = 0
        while sentences < len(ends) - 1 and count(text[start : ends[sentences]]) <= plan.prompt_tokens:
            sentences += 1
    if not 0 < sentences < len(ends):
        return None
    division = ends[sentences - 1]
    return text[start:division], text[division : ends[-1]]
