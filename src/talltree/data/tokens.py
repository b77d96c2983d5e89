"""A tokenised corpus on disk: memory-mapped integer shards with the document boundaries.

A shard holds documents each followed by EOS; the first shard of a split begins with one more EOS, so that a
split reads EOS doc EOS doc EOS. Shards are cut by the amount of text, are written aside and renamed one by
one, and carry their SHA-256: a killed run goes on after its last shard, and a damaged one is made again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from talltree import checkpoint
from talltree.data.corpora import Corpus, near_duplicate_report
from talltree.data.corpus_options import SPLITS
from talltree.errors import DataError, ModelError

FORMAT = 1
SHARD_BYTES = 16 * 2**20
"""UTF-8 bytes of text a shard; so much text is in memory at a time, for each split."""
BATCH_BYTES = 2**20
MOST_UNKNOWN = 0.1


@dataclass(frozen=True)
class TokenStream:
    """EOS doc EOS doc EOS over several arrays; ends: position of the EOS that ends each document."""

    shards: tuple[NDArray[Any], ...]
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return int(self._stops[-1]) if self.shards else 0

    @cached_property
    def _stops(self) -> NDArray[np.int64]:
        return np.cumsum([len(shard) for shard in self.shards])

    def window(self, start: int, length: int) -> NDArray[np.int64]:
        """Tokens start .. start + length - 1. Raises IndexError beyond the end."""
        if start < 0 or start + length > len(self):
            raise IndexError(f"tokens {start} to {start + length} of a stream of {len(self)}")
        stops = self._stops
        first = int(np.searchsorted(stops, start, side="right"))
        parts: list[NDArray[Any]] = []
        begin = start - (int(stops[first - 1]) if first else 0)
        missing = length
        for shard in self.shards[first:]:
            parts.append(shard[begin : begin + missing])
            missing -= len(parts[-1])
            begin = 0
            if not missing:
                break
        return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, dtype=np.int64)

    def document(self, number: int) -> list[int]:
        """The tokens of one document, without EOS."""
        start = int(self.ends[number - 1]) + 1 if number else 1
        return self.window(start, int(self.ends[number]) - start).tolist()

    def documents(self) -> Iterator[list[int]]:
        """Every document in turn, without EOS."""
        return (self.document(number) for number in range(len(self.ends)))


@dataclass(frozen=True)
class Tokens:
    """The three splits of a tokenised corpus (test may be empty) and its manifest, tokens counted."""

    train: TokenStream
    validation: TokenStream
    test: TokenStream
    manifest: dict[str, Any]


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text without special tokens: a literal "<|endoftext|>" in a text stays text.

    Raises DataError for half a surrogate pair, which no encoding can write.
    """
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            shown = text[max(error.start - 20, 0) : error.start]
            raise DataError(
                f"character {error.start} of a text (after {shown!r}) is half a surrogate pair; "
                "write it whole"
            ) from None
    return tokenizer(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        verbose=False,
    )["input_ids"]


def tokenizer_sha256(tokenizer: Any) -> str:
    """SHA-256 of everything that decides the tokens of a text: vocabulary, merges, rules and EOS."""
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        content: Any = sorted(tokenizer.get_vocab().items())
    else:
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        # What the last call asked for is no part of the tokenizer.
        content |= {"padding": None, "truncation": None}
    text = json.dumps([content, tokenizer.eos_token_id], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def packed(documents: Sequence[Sequence[int]], eos: int) -> TokenStream:
    """EOS doc EOS doc EOS in memory, for what is too small for a cache."""
    ids, ends = [eos], []
    for document in documents:
        ids += [*document, eos]
        ends.append(len(ids) - 1)
    return TokenStream((np.array(ids, dtype=np.int64),), np.array(ends, dtype=np.int64))


def load_tokens(
    corpus: Corpus, tokenizer: Any, cache_dir: Path, say: Callable[[str], None] = print
) -> Tokens:
    """The tokenised corpus of `cache_dir`, made there first where it is missing, unfinished or damaged.

    One process writes, others that ask for the same wait. Raises DataError for a bad corpus, ModelError for
    a tokenizer without EOS or that does not know the text, RunError for a full disk.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError("the tokenizer has no EOS token; make one with `talltree tokenizer`")
    folder = cache_dir / f"tokens-{_key(corpus, tokenizer)[:16]}"
    with checkpoint.disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        checkpoint.clean_leftovers(folder)
        finished = _read_json(folder / "corpus.json")
        if finished is None or any(not _is_good(folder, shard) for shard in finished["shards"]):
            if finished is not None or (folder / "corpus.json").exists():
                say(f"{folder} is damaged; what is damaged there is made again")
            finished = _make(corpus, tokenizer, folder, say)
    by_split = {name: [shard for shard in finished["shards"] if shard["split"] == name] for name in SPLITS}
    train, validation, test = (_stream(folder, by_split[name]) for name in SPLITS)
    return Tokens(train, validation, test, finished["manifest"])


def _key(corpus: Corpus, tokenizer: Any) -> str:
    options = {
        key: value for key, value in asdict(corpus.options).items() if key not in ("cache_dir", "sources")
    }
    read_as = (
        "into",
        "share",
        "column",
        "prompt",
        "completion",
        "documents",
        "separator",
        "lines_per_document",
    )
    sources = [
        [
            opened.source.label,
            {key: getattr(opened.source, key) for key in read_as},
            list(opened.sha256.items()),
        ]
        for opened in corpus.sources
    ]
    parts = [FORMAT, SHARD_BYTES, options, sources, tokenizer_sha256(tokenizer)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# Making


def _make(corpus: Corpus, tokenizer: Any, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    documents, words, _ = corpus.count("train")
    say(f"tokenising {documents:,} documents, {words:,} words of training text into {folder}")
    manifest = corpus.manifest() | near_duplicate_report(corpus)
    shards = []
    for name, split, is_first, group in _groups(corpus):
        found = _read_json(folder / f"{name}.json")
        if found is None or not _is_good(folder, found):
            found = _write_shard(corpus, tokenizer, folder, name, split, is_first, group)
        shards.append(found)
    manifest |= _token_counts(shards)
    for row in manifest["sources"]:
        row["tokens"] = sum(shard["tokens_by_source"].get(row["name"], 0) for shard in shards)
    manifest["tokenizer_sha256"] = tokenizer_sha256(tokenizer)
    finished = {"manifest": manifest, "shards": shards}
    _write_json(folder / "corpus.json", finished)
    return finished


def _token_counts(shards: Sequence[dict[str, Any]]) -> dict[str, int]:
    counts = {
        f"{split}_tokens": sum(shard["tokens"] for shard in shards if shard["split"] == split)
        for split in SPLITS
    }
    return {**counts, "unknown_tokens": sum(shard["unknown"] for shard in shards)}


def _groups(corpus: Corpus) -> Iterator[tuple[str, str, bool, list[tuple[int, str]]]]:
    """(name, split, whether it is the split's first, (source, text) of its documents) of each shard."""
    groups: dict[str, list[tuple[int, str]]] = {split: [] for split in SPLITS}
    sizes, numbers = Counter[str](), Counter[str]()

    def cut(split: str) -> tuple[str, str, bool, list[tuple[int, str]]]:
        group, groups[split], sizes[split] = groups[split], [], 0
        numbers[split] += 1
        return f"{split}-{numbers[split] - 1:05d}", split, numbers[split] == 1, group

    for split, source, document in corpus.documents(*SPLITS):
        groups[split].append((source, document.text))
        sizes[split] += len(document.text.encode())
        if sizes[split] >= SHARD_BYTES:
            yield cut(split)
    for split in SPLITS:
        if groups[split]:
            yield cut(split)


def _write_shard(
    corpus: Corpus,
    tokenizer: Any,
    folder: Path,
    name: str,
    split: str,
    is_first: bool,
    group: Sequence[tuple[int, str]],
) -> dict[str, Any]:
    eos, unknown_id, vocabulary = tokenizer.eos_token_id, _unknown_id(tokenizer), len(tokenizer)
    dtype = np.uint16 if vocabulary <= 2**16 else np.uint32
    ids: list[NDArray[Any]] = [np.array([eos], dtype=dtype)] if is_first else []
    lengths: list[int] = []
    by_source = Counter[str]()
    for batch in _batches(group):
        encoded = encode(tokenizer, [text for _, text in batch])
        for (source, _), document in zip(batch, encoded, strict=True):
            if max(document, default=0) >= vocabulary:
                raise ModelError(
                    f"the tokenizer gives the token {max(document)}, and its vocabulary has {vocabulary:,}; "
                    "make one of this corpus with `talltree tokenizer`"
                )
            ids.append(np.array([*document, eos], dtype=dtype))
            lengths.append(len(document) + 1)
            by_source[corpus.sources[source].source.label] += len(document) + 1
    tokens = np.concatenate(ids)
    unknown = int((tokens == unknown_id).sum()) if unknown_id not in (None, eos) else 0
    if unknown > MOST_UNKNOWN * len(tokens):
        raise ModelError(
            f"the tokenizer does not fit the corpus: {unknown:,} of {len(tokens):,} tokens of {name} are "
            "unknown to it; make one of this corpus with `talltree tokenizer`"
        )
    ends = np.cumsum(lengths, dtype=np.int64) - (0 if is_first else 1)
    return _save_shard(
        folder, tokens, ends,
        {"name": name, "split": split, "documents": len(lengths), "tokens": len(tokens),
         "unknown": unknown, "tokens_by_source": dict(by_source)},
    )  # fmt: skip


def _unknown_id(tokenizer: Any) -> int | None:
    """The token for what the tokenizer does not know; some name it only in their model."""
    if tokenizer.unk_token_id is not None:
        return int(tokenizer.unk_token_id)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    name = getattr(backend.model, "unk_token", None) if backend is not None else None
    return backend.token_to_id(name) if backend is not None and name else None


def _save_shard(
    folder: Path, tokens: NDArray[Any], ends: NDArray[np.int64], facts: dict[str, Any]
) -> dict[str, Any]:
    digests = {}
    for file, values in ((f"{facts['name']}.npy", tokens), (f"{facts['name']}.ends.npy", ends)):
        with checkpoint.replacing(folder / file) as partial, partial.open("wb") as out:
            np.save(out, values, allow_pickle=False)
        digests[file] = checkpoint.file_sha256(folder / file)
    found = {**facts, "sha256": digests}
    _write_json(folder / f"{facts['name']}.json", found)
    return found


def _batches(group: Sequence[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    batch: list[tuple[int, str]] = []
    size = 0
    for each in group:
        batch.append(each)
        size += len(each[1])
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


# Reading


def _stream(folder: Path, shards: Sequence[dict[str, Any]]) -> TokenStream:
    arrays, ends, start = [], [np.empty(0, dtype=np.int64)], 0
    for shard in shards:
        tokens = np.load(folder / f"{shard['name']}.npy", mmap_mode="r", allow_pickle=False)
        ends.append(np.load(folder / f"{shard['name']}.ends.npy", allow_pickle=False) + start)
        arrays.append(tokens)
        start += len(tokens)
    return TokenStream(tuple(arrays), np.concatenate(ends))


def _is_good(folder: Path, shard: dict[str, Any]) -> bool:
    return all(
        (folder / name).is_file() and checkpoint.file_sha256(folder / name) == digest
        for name, digest in shard["sha256"].items()
    )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, ensure_ascii=False)
    sealed = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "content": content}
    checkpoint.write_file(path, json.dumps(sealed, ensure_ascii=False).encode())


def _read_json(path: Path) -> dict[str, Any] | None:
    """What `_write_json` wrote; None where there is nothing, or where a byte of it has changed."""
    try:
        sealed = json.loads(path.read_bytes())
        text = json.dumps(sealed["content"], ensure_ascii=False)
        is_whole = hashlib.sha256(text.encode()).hexdigest() == sealed["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return sealed["content"] if is_whole else None
