"""Supervised examples from a corpus: pairs, texts, continuations, and what no split may share."""

import hashlib
import json

import pytest

from talltree.data.corpora import open_corpus
from talltree.data.corpus_options import CorpusOptions
from talltree.data.documents import Document
from talltree.data.examples import (
    Example,
    SentenceSplit,
    by_first_prompt,
    continuations,
    whole,
    with_pairs,
    without_shared,
)
from talltree.errors import DataError


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def corpus(path, **options):
    return open_corpus(CorpusOptions(**{"validation_share": 0.5, **options}), path)


def both(opened):
    """Every document of the corpus by its place."""
    found = [document for _, _, document in opened.documents("train", "validation")]
    return [(each.prompt, each.completion, each.where.rpartition("/")[2]) for each in found]


def texts(*every):
    return [Document("", text, f"here, line {number}") for number, text in enumerate(every, 1)]


def words(text):
    return len(text.split())


# Pairs and texts

PAIRS = [{"prompt": f"p{n}", "completion": f" c{n}\n"} for n in range(8)]


def test_rows_of_prompt_and_completion_are_pairs_with_their_white_space(tmp_path):
    opened = with_pairs(corpus(written(tmp_path / "a.jsonl", PAIRS)))
    assert both(opened) == [(f"p{n}", f" c{n}\n", f"a.jsonl, line {n + 1}") for n in range(8)]
    assert whole(opened.pairs("train"))[0].ends


def test_a_data_set_of_prompt_and_completion_is_pairs(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "hub").mkdir()
    datasets.Dataset.from_list(PAIRS).to_parquet(tmp_path / "hub" / "train.parquet")
    opened = with_pairs(corpus(str(tmp_path / "hub")))
    assert both(opened) == [(f"p{n}", f" c{n}\n", f"hub, row {n + 1}") for n in range(8)]


def test_options_that_name_columns_are_kept_to(tmp_path):
    rows = [row | {"text": f"t{n}", "story": f"s{n}"} for n, row in enumerate(PAIRS)]
    path = written(tmp_path / "a.jsonl", rows)
    assert [each[:2] for each in both(with_pairs(corpus(path)))][:1] == [("p0", " c0\n")], (
        "pairs before texts"
    )
    assert [each[:2] for each in both(with_pairs(corpus(path, column="story")))][:1] == [("", "s0")]
    templates = {"prompt": "TITLE: {text}\nTL;DR:", "completion": " {completion}"}
    assert both(with_pairs(corpus(path, **templates)))[0][:2] == ("TITLE: t0\nTL;DR:", " c0")


def test_texts_stay_texts(tmp_path):
    path = written(tmp_path / "a.jsonl", [{"text": f" t{n}\n", "prompt": "p"} for n in range(8)])
    assert both(with_pairs(corpus(path)))[0][:2] == ("", "t0")
    (tmp_path / "a.txt").write_text("one<|endoftext|>two<|endoftext|>three<|endoftext|>four")
    found = both(with_pairs(corpus(str(tmp_path / "a.txt"))))
    assert found[1] == ("", "two", "a.txt, document 2")


def test_one_prompt_is_never_on_both_sides(tmp_path):
    rows = [{"prompt": f"p{n % 9}", "completion": f"c{n}"} for n in range(60)]
    opened = with_pairs(corpus(written(tmp_path / "a.jsonl", rows), validation_share=0.3))
    # By hand from the rule: SHA-256 of the prompt, its first 8 bytes as a share of 1.
    held = {
        f"p{n}"
        for n in range(9)
        if hashlib.sha256(f"p{n}".encode()).digest()[:8] < (3 * 2**64 // 10).to_bytes(8)
    }
    assert 0 < len(held) < 9
    assert {each.prompt for each in opened.pairs("validation")} == held
    assert {each.prompt for each in opened.pairs("train")} == {f"p{n}" for n in range(9)} - held


def test_an_example_knows_what_no_split_may_share():
    assert Example("p", "c", True, "").key == "p"
    assert Example("", "t", True, "").key == "t"


# Continuations

STORY = "A fox sat. It saw a hen. “Run!” said the fox. The hen ran away."


@pytest.mark.parametrize(
    ("plan", "prompts"),
    [
        (SentenceSplit(None, None, None), ["A fox sat."]),
        (SentenceSplit(2, None, None), ["A fox sat. It saw a hen."]),
        (SentenceSplit(None, 7, None), ["A fox sat. It saw a hen."]),
        (SentenceSplit(None, 6, None), ["A fox sat."]),
        (SentenceSplit(None, 99, None), ["A fox sat. It saw a hen. “Run!” said the fox."]),
    ],
)
def test_a_prompt_is_whole_sentences_and_the_rest_its_completion(plan, prompts):
    found, undivided = continuations(texts(STORY), plan, words)
    assert [each.prompt for each in found] == prompts
    assert [each.prompt + each.completion for each in found] == [STORY]
    assert found[0].completion.startswith(" ") and found[0].ends and undivided == 0
    assert found[0].where == "here, line 1"


def test_long_texts_become_pieces_and_only_the_last_one_ends():
    # Sentences of 3, 4, 4, 4 words; 8 words and the end token are too many for 8, three sentences always.
    found, undivided = continuations(texts(STORY), SentenceSplit(1, None, 9), words)
    assert [(each.prompt, each.completion, each.ends) for each in found] == [
        ("A fox sat.", " It saw a hen.", False),
        ("“Run!” said the fox.", " The hen ran away.", True),
    ]
    assert undivided == 0
    found, undivided = continuations(texts(STORY), SentenceSplit(1, None, 8), words)
    assert [each.prompt for each in found] == ["A fox sat."] and undivided == 2
    assert not found[0].ends, "the text goes on after it"


def test_texts_of_one_sentence_are_counted():
    found, undivided = continuations(texts("One.", STORY), SentenceSplit(1, None, None), words)
    assert len(found) == 1 and undivided == 1
    assert continuations(texts(STORY), SentenceSplit(None, 2, None), words) == ([], 1)


def test_texts_that_begin_alike_stand_in_one_split(tmp_path):
    rows = [{"text": f"Opening {n % 10} was told. Then {n} came."} for n in range(100)]
    path = written(tmp_path / "a.jsonl", rows)
    plan = SentenceSplit(1, None, None)
    opened = by_first_prompt(corpus(path), plan, words)
    sides = [{each.prompt for each in continuations(opened.pairs(split), plan, words)[0]}
             for split in ("train", "validation")]  # fmt: skip
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 10 and all(sides)
    counts = [len(list(opened.pairs(split))) for split in ("train", "validation")]
    assert counts == [10 * len(side) for side in sides]
    plain = corpus(path)
    mixed = [{text[:9] for text in plain.texts(split)} for split in ("train", "validation")]
    assert mixed[0] & mixed[1], "otherwise this proves nothing"


def test_a_text_that_cannot_be_divided_is_its_own_key(tmp_path):
    path = written(tmp_path / "a.jsonl", [{"text": f"Only {n}."} for n in range(40)])
    plan = SentenceSplit(1, None, None)
    assert list(by_first_prompt(corpus(path), plan, words).texts("train")) == list(
        corpus(path).texts("train")
    )


# Splits


def example(prompt, completion="c"):
    return Example(prompt, completion, True, "")


def test_a_held_out_prompt_leaves_train():
    train = [example("a"), example("b"), example("", "b"), example("", "d")]
    assert without_shared(train, [example("b", "x")]) == [example("a"), example("", "d")]
    assert without_shared(train, []) == train
    with pytest.raises(DataError, match="all 1 training examples have prompts that are held out"):
        without_shared([example("b")], [example("b")])
