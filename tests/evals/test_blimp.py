"""BLiMP: our scores against plain forward passes and lm-eval's scoring, its reading, its averages by hand."""

import json
import math
import os

import pytest
import torch

from talltree.errors import DataError, ModelError
from talltree.evals import blimp
from talltree.evals.likelihood import Passage, start_words, token_logprobs, with_start
from talltree.models.load import load_model, load_tokenizer

from ..conftest import find_in_shared
from ..tiny import MODELS, STOP, gpt2, llama, tokenizer

CHECKED = ("adjunct_island", "determiner_noun_agreement_1", "principle_A_case_1")


def plain(model, ids):
    """Sum of log p of ids[1:] by one forward pass of the library in float64 softmax."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1].double()
    return float(torch.log_softmax(logits, -1)[range(len(ids) - 1), ids[1:]].sum())


def pairs_of(folder, name, pairs):
    rows = [{"sentence_good": good, "sentence_bad": bad} for good, bad in pairs]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def row(paradigm, won, per_token=0.5, too_long=False):
    return {"paradigm": paradigm, "won": won, "won_per_token": per_token, "too_long": too_long}


# Scores


@pytest.mark.parametrize("name", MODELS)
def test_batches_score_as_one_sentence_at_a_time_does(name):
    model = MODELS[name]()
    words = tokenizer()
    pairs = [("w1 w2 w3", "w3 w2 w1 w4 w4 w4"), ("w5", "w6 w7"), ("w1 w2 w3", "w1 w2 w3")]
    rows = blimp.score_paradigm(model, words, blimp.Paradigm("x", pairs))
    for found, pair in zip(rows, pairs, strict=True):
        sums = [plain(model, [STOP, *words(text)["input_ids"]]) for text in pair]
        assert found["good_nats"] == pytest.approx(sums[0], abs=1e-5)
        assert found["bad_nats"] == pytest.approx(sums[1], abs=1e-5)
        assert found["won"] == (0.5 if pair[0] == pair[1] else float(sums[0] > sums[1]))
    assert [found["good_tokens"] for found in rows] == [3, 1, 3]


@pytest.mark.parametrize("name", ["gpt2", "gpt_neo"])
def test_in_float64_batches_and_single_sentences_agree_to_its_rounding(name):
    model = MODELS[name]().double()
    pairs = [("w1 w2 w3", "w3 w2 w1 w4 w4 w4"), ("w5", "w6 w7")]
    rows = blimp.score_paradigm(model, tokenizer(), blimp.Paradigm("x", pairs))
    for found, pair in zip(rows, pairs, strict=True):
        sums = [plain(model, [STOP, *tokenizer()(text)["input_ids"]]) for text in pair]
        assert [found["good_nats"], found["bad_nats"]] == pytest.approx(sums, abs=1e-11)


@pytest.mark.parametrize("name", CHECKED)
def test_real_sentences_equal_plain_forward_passes_to_the_last_item(shared, stories260K, name):
    """One in 25 of the 1,000 items each, to be quick; docs/evaluation.md has the whole paradigms."""
    folder = find_in_shared(shared, os.environ, "data/blimp")
    (whole,) = blimp.read_paradigms(str(folder), [name])
    assert len(whole.pairs) == 1000
    model, words = load_model(str(stories260K)), load_tokenizer(str(stories260K))
    paradigm = blimp.Paradigm(name, whole.pairs[::25])
    rows = blimp.score_paradigm(model, words, paradigm)
    for found, pair in zip(rows, paradigm.pairs, strict=True):
        # This tokenizer puts <s> (its BOS) in front by itself.
        good, bad = (plain(model, words(text)["input_ids"]) for text in pair)
        # Sums of about 100 nats in float32: passes of other shapes round to 4e-7 of them.
        assert found["good_nats"] == pytest.approx(good, rel=1e-6)
        assert found["bad_nats"] == pytest.approx(bad, rel=1e-6)
        assert found["won"] == float(good > bad)


def test_equal_to_lm_eval_with_its_leading_space(shared, stories260K):
    """lm-eval scores " sentence" after the BOS: the space is its delimiter, which stays before a choice."""
    models = pytest.importorskip("lm_eval.models.huggingface", reason="lm-eval is not installed")
    from lm_eval.api.instance import Instance

    folder = find_in_shared(shared, os.environ, "data/blimp")
    (whole,) = blimp.read_paradigms(str(folder), ["npi_present_1"])
    paradigm = blimp.Paradigm(whole.name, whole.pairs[:30])
    model, words = load_model(str(stories260K)), load_tokenizer(str(stories260K))
    peer = models.HFLM(pretrained=model, tokenizer=words, batch_size=16, device="cpu")
    texts = [f" {text}" for pair in paradigm.pairs for text in pair]
    asked = [Instance("loglikelihood", {}, ("", text), at) for at, text in enumerate(texts)]
    theirs = [nats for nats, _ in peer.loglikelihood(asked, disable_tqdm=True)]
    ours = blimp.score_paradigm(model, words, paradigm, leading_space=True)
    for at, found in enumerate(ours):
        # Its log-softmax is the library's float32 one, which is the less exact of the two.
        assert found["good_nats"] == pytest.approx(theirs[2 * at], abs=1e-4)
        assert found["bad_nats"] == pytest.approx(theirs[2 * at + 1], abs=1e-4)
        assert found["won"] == float(theirs[2 * at] > theirs[2 * at + 1])
    without = blimp.score_paradigm(model, words, paradigm)
    assert any(a["good_nats"] != b["good_nats"] for a, b in zip(ours, without, strict=True))


def test_equal_sentences_tie_to_the_last_bit():
    pairs = [("w1 w2", "w1 w2"), ("w1", "w2"), ("w9 w8 w7", "w9 w8 w7")]
    rows = blimp.score_paradigm(llama(), tokenizer(), blimp.Paradigm("x", pairs))
    assert [found["won"] == 0.5 for found in rows] == [True, False, True]


def test_sentences_longer_than_the_context_are_counted_and_not_scored():
    long = " ".join(["w1"] * 64)  # 65 tokens with the start, and the context is 64
    fits = " ".join(["w1"] * 63)
    rows = blimp.score_paradigm(
        llama(), tokenizer(), blimp.Paradigm("wh_island", [("w1", long), (fits, "w2"), ("w3", "w4")])
    )
    assert [found["too_long"] for found in rows] == [True, False, False]
    assert (rows[0]["good_nats"], rows[0]["won"]) == (None, None)
    assert rows[2]["good_nats"] == pytest.approx(plain(llama(), [STOP, 3]), abs=1e-5)
    found = blimp.summarise(rows)
    assert found.metrics["too_long"].value == 1.0
    assert found.metrics["paradigm/wh_island"].n == 2
    assert "1 of 3 pairs have a sentence longer than the context" in found.notes[-1]
    with pytest.raises(ModelError, match="every pair of wh_island has a sentence longer"):
        blimp.summarise(rows[:1])


def test_what_a_text_is_read_after():
    words = tokenizer()  # has only an EOS
    assert with_start(words, ["w1 w2"], 23) == [Passage([0], [1, 2])]
    assert "EOS (there is no BOS)" in start_words(words)
    words.eos_token = None
    assert with_start(words, ["w1 w2"], 23) == [Passage([1], [2])]
    assert "neither BOS nor EOS" in start_words(words)
    assert list(token_logprobs(gpt2(), [Passage([1], []), Passage([1], [2])]))[0] == []
    with pytest.raises(ModelError, match="gives token 22 for 'w22', but the model has 9"):
        with_start(words, ["w22"], 9)


def test_real_start_tokens(stories260K):
    words = load_tokenizer(str(stories260K))
    assert with_start(words, ["Once"], 512)[0].before == [1]
    assert start_words(words) == "Texts are read after '<s>', the tokenizer's BOS."


# Averages


def test_averages_by_hand():
    rows = [row("passive_1", 1.0)] * 3 + [row("passive_1", 0.5)] + [row("causative", 0.0)] * 2
    rows += [row("wh_island", 1.0, 0.0)]
    found = blimp.summarise(rows).metrics
    assert found["paradigm/passive_1"].value == 3.5 / 4
    assert found["paradigm/causative"].value == 0.0
    assert found["phenomenon/argument_structure"].value == (3.5 / 4 + 0) / 2
    assert found["overall"].value == pytest.approx((3.5 / 4 + 0 + 1) / 3)
    assert found["overall"].n == 7
    assert found["overall_per_token"].value == pytest.approx((0.5 + 0.5 + 0) / 3)
    assert found["ties"].value == 1 / 7
    assert "phenomenon/binding" not in found


def test_per_token_divides_by_each_sentences_own_tokens():
    # -3 over 1 token against -4 over 4: the sum prefers the first, the mean per token the second.
    found = blimp._scores([-3.0], [-1.0] * 4)
    assert (found["won"], found["won_per_token"]) == (1.0, 0.0)
    assert blimp._scores([-1.0, -1.0], [-1.0, -1.0])["won_per_token"] == 0.5


def test_there_are_67_paradigms_in_12_phenomena():
    assert len(blimp.PARADIGMS) == len(set(blimp.PARADIGMS)) == 67
    assert len(blimp.PHENOMENA) == 12


def test_the_table_agrees_with_the_real_files(shared):
    folder = find_in_shared(shared, os.environ, "data/blimp")
    assert sorted(path.stem for path in folder.glob("*.jsonl")) == sorted(blimp.PARADIGMS)
    other_names = {"s-selection": "argument_structure"}
    for phenomenon, names in blimp.PHENOMENA.items():
        for name in names:
            first = json.loads((folder / f"{name}.jsonl").open().readline())
            term = first["linguistics_term"]
            assert other_names.get(term, term) == phenomenon, name


# Reading


def test_layouts_and_hashes(tmp_path):
    (one, two) = (tmp_path / "one", tmp_path / "two" / "data")
    one.mkdir()
    two.mkdir(parents=True)
    pairs = [("A good one.", "A one good.")]
    first = blimp.read_paradigms(str(pairs_of(one, "wh_island", pairs)), ["wh_island"])
    pairs_of(two, "wh_island", pairs)
    assert (
        first == blimp.read_paradigms(str(two.parent), ["wh_island"]) == [blimp.Paradigm("wh_island", pairs)]
    )
    assert first[0].sha256 != blimp.Paradigm("wh_island", [("A", "B")]).sha256


def test_a_folder_of_parquet_files_as_the_hub_has_it(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    (tmp_path / "wh_island").mkdir()
    table = pa.table({"sentence_good": ["a b"], "sentence_bad": ["b a"]})
    parquet.write_table(table, tmp_path / "wh_island" / "train-00000-of-00001.parquet")
    assert blimp.read_paradigms(str(tmp_path), ["wh_island"])[0].pairs == [("a b", "b a")]


def test_missing_data_say_what_to_fetch_and_where_it_was_looked_for(tmp_path):
    with pytest.raises(DataError) as missing:
        blimp.read_paradigms(str(pairs_of(tmp_path, "wh_island", [("a", "b")])), blimp.PARADIGMS)
    assert f"{tmp_path} lacks 66 of 67 paradigms (adjunct_island, " in str(missing.value)
    assert "looked for adjunct_island.jsonl, data/adjunct_island.jsonl" in str(missing.value)
    assert "fetch the folder data/ of https://github.com/alexwarstadt/blimp" in str(missing.value)
    with pytest.raises(DataError, match="there is no folder .*nowhere; fetch"):
        blimp.read_paradigms(str(tmp_path / "nowhere"), ["wh_island"])
    with pytest.raises(DataError, match="paradigm wh_island: dataset no-such/data.*or fetch the folder"):
        blimp.read_paradigms("no-such/data", ["wh_island"])


def test_a_bad_row_is_named(tmp_path):
    with pytest.raises(DataError, match=r"wh_island.jsonl, line 2: sentence_bad is ' ', not a sentence"):
        blimp.read_paradigms(str(pairs_of(tmp_path, "wh_island", [("a", "b"), ("a", " ")])), ["wh_island"])
    (tmp_path / "wh_island.jsonl").write_text("\n")
    with pytest.raises(DataError, match="holds no pairs"):
        blimp.read_paradigms(str(tmp_path), ["wh_island"])


def test_the_sum_is_over_every_token():
    model = llama()
    (logp,) = token_logprobs(model, [Passage([STOP], [1, 2, 3])])
    assert math.fsum(logp) == pytest.approx(plain(model, [STOP, 1, 2, 3]), abs=1e-5)
    assert len(logp) == 3
