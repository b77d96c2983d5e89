"""Copied runs against a search of every run by brute force, and the prompt's n-grams by hand."""

import random

from talltree.evals.novelty import Copied, copied, copied_from_prompt, words


def test_runs_by_hand():
    (first, second), read = copied(
        ["The cat sat on a mat.", "dogs run"], ["Once the CAT sat, there.", "a mat on a mat"]
    )
    assert first.runs == [1, 2, 3, 1, 2, 3]  # "the cat sat", then "on a mat" of the other document
    assert first.longest == 3
    assert first.share(3) == 2 / 4  # of: the cat sat, cat sat on, sat on a, on a mat
    assert second == Copied([0, 0])
    assert second.longest == 0
    assert second.share(3) is None  # has no run of three
    assert read == 10


def test_no_run_crosses_two_documents_or_two_texts():
    (found,), _ = copied(["a b c d"], ["a b", "c d"])
    assert found.runs == [1, 2, 1, 2]
    found, _ = copied(["a b", "c d"], ["a b c d"])
    assert [each.runs for each in found] == [[1, 2], [1, 2]]


def test_runs_equal_brute_force():
    draw = random.Random(0)
    make = lambda: " ".join(draw.choices("abc", k=draw.randint(0, 9)))  # noqa: E731
    for _ in range(300):
        texts = [make() for _ in range(draw.randint(1, 3))]
        corpus = [make() for _ in range(draw.randint(1, 4))]
        known = {tuple(doc.split()[i:j]) for doc in corpus for i in range(10) for j in range(i + 1, 11)}
        found, _ = copied(texts, corpus)
        for text, each in zip(texts, found, strict=True):
            every = text.split()
            assert each.runs == [
                max((n for n in range(1, at + 2) if tuple(every[at + 1 - n : at + 1]) in known), default=0)
                for at in range(len(every))
            ]


def test_no_corpus_and_no_text():
    assert copied(["a b"], []) == ([Copied([0, 0])], 0)
    assert copied([""], ["a"]) == ([Copied([])], 1)
    assert Copied([]).longest == 0


def test_copying_from_the_prompt_by_hand():
    # Pairs of the completion: the dog, dog ran, ran home; the prompt has the first.
    assert copied_from_prompt("See the dog!", "The dog ran home", 2) == 1 / 3
    assert copied_from_prompt("a b c d", "a b c d", 4) == 1.0
    assert copied_from_prompt("a", "b", 2) is None
    assert words("Don't STOP, ok") == ["don", "t", "stop", "ok"]
