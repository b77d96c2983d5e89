"""How judgements are divided: nothing read in training is held out, and what that costs is counted."""

import itertools
import random

import pytest

from talltree.data.preferences import Judgement, pairs
from talltree.errors import DataError
from talltree.stages.reward.comparisons import Texts, comparison, states, usable
from talltree.stages.reward.split import components, given, nested_order, restricted, split


def bws(prompt, texts, **fields):
    return Judgement(prompt=prompt, candidates=tuple(texts), **({"best": 0, "worst": 3} | fields))


def texts_of(judgements):
    return {text for judgement in judgements for text in judgement.candidates}


def many_prompts(n=200):
    """Prompts 0 to 39, each with five tuples that share candidates."""
    return [bws(f"p{i % 40}", [f"{i % 40} {(i // 40 + j) % 8}" for j in range(4)]) for i in range(n)]


def test_by_prompt_no_prompt_and_no_text_is_on_both_sides():
    for seed in range(5):
        found = split(many_prompts(), 0.1, seed)
        assert found.rule == "prompt" and len(found.train) + len(found.held_out) == 200
        assert {j.prompt for j in found.train}.isdisjoint(j.prompt for j in found.held_out)
        assert texts_of(found.train).isdisjoint(texts_of(found.held_out))
        assert len(found.held_out) == 20  # four prompts of five tuples each
        assert len(set(found.clusters)) == 4
        by_cluster = {c: j.prompt for c, j in zip(found.clusters, found.held_out, strict=True)}
        assert all(by_cluster[c] == j.prompt for c, j in zip(found.clusters, found.held_out, strict=True))
    assert split(many_prompts(), 0.1, 0).held_out != split(many_prompts(), 0.1, 1).held_out


def test_prompts_that_share_a_candidate_or_a_tuple_stay_together():
    some = [
        bws("a", "1234"),
        bws("b", "4567"),
        bws("c", "abcd", tuple_id="t"),
        bws("c", "abcd", tuple_id="t"),
    ]
    keys = [
        lambda j: [("prompt", j.prompt), *(("candidate", t) for t in j.candidates)],
        lambda j: [("prompt", j.prompt)],
    ]
    assert components(some, keys[0]) == [0, 0, 2, 2]
    assert components(some, keys[1]) == [0, 1, 2, 2]


def test_one_prompt_with_tuples_of_their_own_is_split_by_items():
    judgements = [bws("Once upon a time", [f"{i} {j}" for j in range(4)]) for i in range(50)]
    judgements += judgements[:30]  # judged twice
    found = split(judgements, 0.1, 0)
    assert found.rule == "items" and len(found.train) + len(found.held_out) == 80
    assert 4 <= len(found.held_out) <= 8
    assert texts_of(found.train).isdisjoint(texts_of(found.held_out))
    with pytest.raises(DataError, match="hang together .* --split_by items"):
        split(judgements, 0.1, 0, "prompt")


def test_one_prompt_whose_items_all_meet_is_split_by_single_items():
    generator = random.Random(0)
    judgements = [
        bws("Once upon a time", [str(i) for i in generator.sample(range(60), 4)]) for _ in range(400)
    ]
    found = split(judgements, 0.1, 0)
    assert found.rule == "single items"
    held, trained = texts_of(found.held_out), texts_of(found.train)
    assert held.isdisjoint(trained) and held and trained
    straddling = [j for j in judgements if set(j.candidates) & held and set(j.candidates) & trained]
    # An item may be on the held-out side without a comparison left there.
    assert len(straddling) <= found.counts["straddling"]
    whole = sum(len(pairs(j)) for j in judgements)
    kept = sum(len(pairs(j)) for j in [*found.train, *found.held_out])
    assert found.counts["straddling_pairs_lost"] == whole - kept > 0
    assert found.counts["straddling_left_out"] < found.counts["straddling"]
    # Every pair that is left was settled by the judgement it came from.
    settled = {(j.candidates[a], j.candidates[b]) for j in judgements for a, b in pairs(j)}
    for judgement in [*found.train, *found.held_out]:
        assert {(judgement.candidates[a], judgement.candidates[b]) for a, b in pairs(judgement)} <= settled
    share = sum(len(pairs(j)) for j in found.held_out) / kept
    assert 0.03 < share < 0.25


@pytest.mark.parametrize(
    ("fields", "kept", "expected"),
    [
        ({"best": 0, "worst": 3}, (0, 1), [(0, 1)]),
        ({"best": 0, "worst": 3}, (1, 2), None),
        ({"best": 0, "worst": 3}, (1, 2, 3), [(0, 2), (1, 2)]),
        ({"best": 2}, (0, 2), [(1, 0)]),
        ({"best": 2}, (0, 1), None),
        ({"ranking": (3, 1, 0, 2)}, (0, 1, 3), [(2, 1), (2, 0), (1, 0)]),
        ({"ranking": (3, 1)}, (0, 1, 2), [(1, 0), (1, 2)]),
        ({"ranking": (3, 1)}, (0, 2), None),
        ({"ratings": (1.0, 2.0, 2.0, 5.0)}, (1, 2, 3), [(2, 0), (2, 1)]),
        ({"ratings": (1.0, 2.0, 2.0, 5.0)}, (1, 2), None),
        ({"tie": True}, (0, 1), None),
        ({"best": 0}, (0,), None),
    ],
)
def test_a_judgement_of_some_of_its_candidates(fields, kept, expected):
    judgement = Judgement(prompt="p", candidates=("a", "b", "c", "d"), order=(3, 2, 1, 0), **fields)
    found = restricted(judgement, kept)
    if expected is None:
        assert found is None
    else:
        assert sorted(pairs(found)) == sorted(expected)
        assert found.candidates == tuple("abcd"[i] for i in kept)


def test_a_split_of_the_users_own_leaves_out_what_is_held_out():
    train = [bws("a", "1234"), bws("b", "5678"), bws("c", "9abc"), bws("d", "efgh")]
    held = [bws("d", "8xyz"), bws("d", "vwut")]
    found = given(train, held)
    assert found.train == [train[0], train[2]] and found.held_out == held
    assert found.counts == {"shared_candidates": 1, "shared_prompt": 1}
    assert found.rule == "given, by prompt" and len(set(found.clusters)) == 1
    found = given(train, held, "items")
    assert found.train == [train[0], train[2], train[3]] and found.rule == "given, by items"
    assert found.counts == {"shared_candidates": 1, "same_prompt_kept": 1}
    assert len(set(found.clusters)) == 2 and not found.by_texts


def test_a_split_of_the_users_own_with_one_prompt_for_all():
    train = [bws("a", "1234"), bws("a", "5678")]
    held = [bws("a", "uvwx"), bws("a", "xyz0")]
    found = given(train, held)
    assert (found.train, found.rule, found.counts["same_prompt_kept"]) == (train, "given, by items", 2)
    # Both share x, so that whole judgements cannot be drawn, but their candidates can.
    assert len(set(found.clusters)) == 1 and found.by_texts
    with pytest.raises(DataError, match="all 2 training judgements have prompts of validation_name"):
        given(train, held, "prompt")


def test_a_beginning_of_the_nested_order_is_a_random_subset():
    judgements = many_prompts()
    order = nested_order(judgements, 3)
    assert sorted(map(repr, order)) == sorted(map(repr, judgements))
    assert order != nested_order(judgements, 4)
    # 50 of 200 from 40 prompts: a block of neighbours would have 10 to 13 prompts.
    assert len({judgement.prompt for judgement in order[:50]}) > 20


def test_what_settles_nothing_is_left_out_by_reason():
    some = [
        bws("p", "abcd"),
        Judgement(prompt="p", candidates=("a", "b"), tie=True),
        Judgement(prompt="p", candidates=("a",), ratings=(3.0,)),
        Judgement(prompt="p", candidates=("a", "b"), ratings=(3.0, 3.0)),
        Judgement(prompt="p", candidates=("a", "b", "c"), ratings=(3.0, 3.0, 1.0)),
        Judgement(prompt="p", candidates=("a", "b", "c"), worst=1),
    ]
    assert usable(some, "plackett_luce") == (
        [0, 4, 5],
        {"ties": 2, "rated_alone": 1, "without_best": 0, "too_long": 0},
    )
    assert usable(some, "softmax") == ([0], {"ties": 2, "rated_alone": 1, "without_best": 2, "too_long": 0})


def test_judgements_of_one_kind_settle_the_same_places():
    texts = Texts()
    for best, worst in itertools.permutations(range(4), 2):
        judgement = bws("p", "abcd", best=best, worst=worst)
        found = comparison(judgement, texts, 0)
        assert found.above == ((0, 1), (0, 2), (0, 3), (1, 3), (2, 3))
        completions = [texts.completions[row] for row in found.texts]
        assert (completions[0], completions[3]) == ("abcd"[best], "abcd"[worst])
        assert sorted(completions) == list("abcd")
    assert texts.prompts == ["p"] * 4
    ranking = comparison(Judgement(prompt="q", candidates=("a", "b", "c"), ranking=(2, 0, 1)), texts, 0)
    assert [texts.completions[row] for row in ranking.texts] == ["c", "a", "b"]
    assert len(texts.prompts) == 7  # the same completions after another prompt are other texts


def test_the_states_of_an_order_are_counted():
    assert states([(0, 1)], 2) == 1
    assert states([(0, low) for low in range(1, 30)], 30) == 1
    # Best and worst of four: all, without the best, without one or the other of the middle.
    assert states([(0, 1), (0, 2), (0, 3), (1, 3), (2, 3)], 4) == 4
