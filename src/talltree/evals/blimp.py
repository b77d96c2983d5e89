"""BLiMP: does a model find the grammatical one of two sentences the more probable? Warstadt et al. 2020.

A pair is won where log p of the good sentence, summed over its tokens, is higher; a tie counts as half, so
that a model which cannot tell the two apart stands at chance. Overall is the mean over paradigms.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from talltree.data.corpus_options import Source
from talltree.data.documents import jsonl_rows
from talltree.data.sources import load_dataset
from talltree.errors import DataError, ModelError
from talltree.evals.likelihood import Heard, start_words, token_logprobs, with_start
from talltree.evals.results import Metric, TaskResult
from talltree.evals.statistics import macro_average, share
from talltree.models.load import context_length

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HUB = "nyu-mll/blimp"
UNIT = "share of pairs"
FETCH = (
    "fetch the folder data/ of https://github.com/alexwarstadt/blimp (one NAME.jsonl a paradigm), or "
    f"{HUB} from the hub, and give it as --blimp.data"
)

PHENOMENA: Mapping[str, tuple[str, ...]] = {
    "anaphor_agreement": ("anaphor_gender_agreement", "anaphor_number_agreement"),
    "argument_structure": (
        *("animate_subject_passive", "animate_subject_trans", "causative", "drop_argument", "inchoative"),
        *("intransitive", "passive_1", "passive_2", "transitive"),
    ),
    "binding": (
        *("principle_A_c_command", "principle_A_case_1", "principle_A_case_2", "principle_A_domain_1"),
        *("principle_A_domain_2", "principle_A_domain_3", "principle_A_reconstruction"),
    ),
    "control_raising": (
        *("existential_there_object_raising", "existential_there_subject_raising"),
        *("expletive_it_object_raising", "tough_vs_raising_1", "tough_vs_raising_2"),
    ),
    "determiner_noun_agreement": (
        *("determiner_noun_agreement_1", "determiner_noun_agreement_2"),
        *("determiner_noun_agreement_irregular_1", "determiner_noun_agreement_irregular_2"),
        *("determiner_noun_agreement_with_adj_2", "determiner_noun_agreement_with_adj_irregular_1"),
        *("determiner_noun_agreement_with_adj_irregular_2", "determiner_noun_agreement_with_adjective_1"),
    ),
    "ellipsis": ("ellipsis_n_bar_1", "ellipsis_n_bar_2"),
    "filler_gap_dependency": (
        *("wh_questions_object_gap", "wh_questions_subject_gap", "wh_questions_subject_gap_long_distance"),
        *("wh_vs_that_no_gap", "wh_vs_that_no_gap_long_distance", "wh_vs_that_with_gap"),
        "wh_vs_that_with_gap_long_distance",
    ),
    "irregular_forms": ("irregular_past_participle_adjectives", "irregular_past_participle_verbs"),
    "island_effects": (
        *("adjunct_island", "complex_NP_island", "coordinate_structure_constraint_complex_left_branch"),
        *("coordinate_structure_constraint_object_extraction", "left_branch_island_echo_question"),
        *("left_branch_island_simple_question", "sentential_subject_island", "wh_island"),
    ),
    "npi_licensing": (
        *("matrix_question_npi_licensor_present", "npi_present_1", "npi_present_2"),
        *("only_npi_licensor_present", "only_npi_scope", "sentential_negation_npi_licensor_present"),
        "sentential_negation_npi_scope",
    ),
    "quantifiers": (
        *("existential_there_quantifiers_1", "existential_there_quantifiers_2"),
        *("superlative_quantifiers_1", "superlative_quantifiers_2"),
    ),
    "subject_verb_agreement": (
        *("distractor_agreement_relational_noun", "distractor_agreement_relative_clause"),
        *("irregular_plural_subject_verb_agreement_1", "irregular_plural_subject_verb_agreement_2"),
        *("regular_plural_subject_verb_agreement_1", "regular_plural_subject_verb_agreement_2"),
    ),
}
"""The paper's 12 phenomena and their paradigms; the files call two of argument structure s-selection."""

PARADIGMS = tuple(sorted(name for names in PHENOMENA.values() for name in names))


class Paradigm(NamedTuple):
    """Its name and its minimal pairs: (good, bad)."""

    name: str
    pairs: list[tuple[str, str]]

    @property
    def sha256(self) -> str:
        """SHA-256 of the pairs, the same whichever format they came in."""
        return hashlib.sha256(json.dumps(self.pairs).encode()).hexdigest()


# Reading


def read_paradigms(data: str, names: Sequence[str]) -> list[Paradigm]:
    """The named paradigms of a folder (NAME.jsonl, data/NAME.jsonl or NAME/*.parquet) or of a hub dataset.

    Raises DataError, saying where it looked and what to fetch, for a paradigm that is not there, and with
    file and line for a row without its two sentences.
    """
    folder = Path(data).expanduser()
    if not folder.is_dir():
        if folder.exists() or data.startswith((".", "/", "~")) or data.count("/") > 1:
            raise DataError(f"BLiMP: there is no folder {data}; {FETCH}")
        return [_from_dataset(data, name) for name in names]
    places = {name: _place(folder, name) for name in names}
    missing = [name for name, place in places.items() if place is None]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise DataError(
            f"BLiMP: {folder} lacks {len(missing)} of {len(names)} paradigms ({shown}); looked for "
            f"{missing[0]}.jsonl, data/{missing[0]}.jsonl and {missing[0]}/*.parquet there; {FETCH}"
        )
    return [_from_place(name, place) for name, place in places.items() if place is not None]


def _place(folder: Path, name: str) -> Path | None:
    for path in (folder / f"{name}.jsonl", folder / "data" / f"{name}.jsonl"):
        if path.is_file():
            return path
    return folder / name if any((folder / name).glob("*.parquet")) else None


def _from_place(name: str, place: Path) -> Paradigm:
    if place.is_dir():
        return _from_dataset(str(place), name)
    return _paradigm(name, [(where, row) for where, row in jsonl_rows(place)], str(place))


def _from_dataset(source: str, name: str) -> Paradigm:
    configuration = None if Path(source).is_dir() else name
    try:
        rows = load_dataset(Source(dataset=source, config_name=configuration, split="train"), source)
    except DataError as error:
        raise DataError(f"BLiMP, paradigm {name}: {error}; or {FETCH}") from None
    return _paradigm(name, [(f"{source}, {name}, row {at}", row) for at, row in enumerate(rows, 1)], source)


def _paradigm(name: str, rows: Sequence[tuple[str, Mapping[str, Any]]], where: str) -> Paradigm:
    if not rows:
        raise DataError(f"BLiMP: {where} holds no pairs; {FETCH}")
    pairs = []
    for place, row in rows:
        for field in ("sentence_good", "sentence_bad"):
            if not isinstance(row.get(field), str) or not row[field].strip():
                raise DataError(f"{place}: {field} is {str(row.get(field))[:40]!r}, not a sentence")
        pairs.append((row["sentence_good"], row["sentence_bad"]))
    return Paradigm(name, pairs)


# Scoring


def score_paradigm(
    model: PreTrainedModel,
    tokenizer: Any,
    paradigm: Paradigm,
    *,
    leading_space: bool = False,
    heard: Heard | None = None,
) -> list[dict[str, Any]]:
    """A row per pair: both sentences, sums of log p in nats, tokens, and who won by sum and by mean a token.

    won: 1, 0, or 0.5 for a tie. A pair with a sentence longer than the model's context is not scored: it has
    `too_long` and None. leading_space puts a space before each sentence, as lm-eval does.
    """
    texts = [(" " if leading_space else "") + text for pair in paradigm.pairs for text in pair]
    passages = with_start(tokenizer, texts, model.config.vocab_size)
    room = context_length(model)
    fits = [
        max(len(each.before) + len(each.scored) for each in passages[at : at + 2]) <= room
        for at in range(0, len(passages), 2)
    ]
    read = [passage for at, passage in enumerate(passages) if fits[at // 2]]
    found = token_logprobs(model, read, heard)
    rows: list[dict[str, Any]] = []
    for (good, bad), fit in zip(paradigm.pairs, fits, strict=True):
        row = {"paradigm": paradigm.name, "item": len(rows), "good": good, "bad": bad, "too_long": not fit}
        scores = _scores(next(found), next(found)) if fit else dict.fromkeys(SCORES)
        rows.append(row | scores)
    return rows


SCORES = ("good_nats", "bad_nats", "good_tokens", "bad_tokens", "won", "won_per_token")


def _scores(good: Sequence[float], bad: Sequence[float]) -> dict[str, float]:
    good_sum, bad_sum = math.fsum(good), math.fsum(bad)
    values = (good_sum, bad_sum, len(good), len(bad), _won(good_sum, bad_sum))
    per_token = _won(good_sum / max(len(good), 1), bad_sum / max(len(bad), 1))
    return dict(zip(SCORES, (*values, per_token), strict=True))


def _won(good: float, bad: float) -> float:
    return 1.0 if good > bad else 0.0 if good < bad else 0.5


def read_after(tokenizer: Any, leading_space: bool) -> str:
    """How sentences are read, in words for the notes of a result."""
    space = " A space stands before each sentence." if leading_space else ""
    return start_words(tokenizer) + space


# Summary


def summarise(rows: Sequence[Mapping[str, Any]]) -> TaskResult:
    """Accuracy of each paradigm, each phenomenon and overall, from rows of `score_paradigm`.

    paradigm/NAME: share of pairs won, Wilson's interval. phenomenon/NAME and overall: mean over paradigms,
    bootstrap over pairs within paradigms; *_per_token: the
    same with log p divided by the number of tokens. Raises ModelError where no pair fits the context.
    """
    by_paradigm: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_paradigm.setdefault(row["paradigm"], []).append(row)
    scored = {name: [row for row in each if not row["too_long"]] for name, each in by_paradigm.items()}
    empty = [name for name, each in scored.items() if not each]
    if empty:
        raise ModelError(f"BLiMP: every pair of {empty[0]} has a sentence longer than the model's context")
    metrics: dict[str, Metric] = {}
    metrics |= _averages(scored, "won", "")
    metrics |= _averages(scored, "won_per_token", "_per_token")
    for name, each in scored.items():
        metrics[f"paradigm/{name}"] = share(math.fsum(row["won"] for row in each), len(each), UNIT)
    n = sum(map(len, scored.values()))
    metrics["ties"] = share(sum(row["won"] == 0.5 for row in rows), n, UNIT)
    too_long = len(rows) - n
    metrics["too_long"] = Metric(float(too_long), None, None, len(rows), "pairs")
    return TaskResult(metrics, list(map(dict, rows)), _notes(too_long, len(rows), len(scored)))


def _averages(
    scored: Mapping[str, Sequence[Mapping[str, Any]]], field: str, suffix: str
) -> dict[str, Metric]:
    won = {name: [row[field] for row in each] for name, each in scored.items()}
    found = {f"overall{suffix}": macro_average(list(won.values()), UNIT)}
    for phenomenon, names in PHENOMENA.items():
        inside = [won[name] for name in names if name in won]
        if inside:
            found[f"phenomenon{suffix}/{phenomenon}"] = macro_average(inside, UNIT)
    return found


def _notes(too_long: int, pairs: int, paradigms: int) -> tuple[str, ...]:
    notes = [
        f"Overall is the mean over {paradigms} of the {len(PARADIGMS)} paradigms; a tie is half a pair won."
    ]
    if too_long:
        notes.append(
            f"{too_long:,} of {pairs:,} pairs have a sentence longer than the context and are not scored."
        )
    return tuple(notes)
