"""Stage `sft`: examples as tokens, the boundary, the end token, batches."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from talltree.data.examples import Example
from talltree.errors import DataError
from talltree.models.load import encode, load_tokenizer
from talltree.rollout import encode_prompts
from talltree.stages.sft.tokens import Tokens, end_token, epoch_batches, tokenise
from talltree.types import Prompt

from ..tiny import llama, tokenizer

EOS = 0
"""`<end>` of the toy tokenizer."""


def example(prompt, completion, ends=True):
    return Example(prompt, completion, ends, "here")


def ids_of(words, one, *, on_text=False, eos=EOS, vocabulary=10**6):
    return tokenise(words, one, eos, on_text=on_text, vocabulary=vocabulary)


@pytest.fixture(scope="module")
def byte_level():
    """A small byte-level BPE without BOS, as GPT-2's is."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|eos|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(["Once upon a time there was a tree. The tree was tall."] * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|eos|>")


# Tokens

BOUNDARIES = [
    ("Once upon a time", " there was a tree."),
    ("Once upon a ", "time there was a tree."),
    ("Once upon a ti", "me"),
    ("The tree\n", "\n was tall"),
    ("POST: x\nTL;DR:", "tall tree"),
    ("naïve 🌳", "🌳 é 木"),
    ("“Tall,", "” he said."),
]


def assert_boundary(words, prompt, completion, eos):
    found = ids_of(words, example(prompt, completion), eos=eos)
    whole = encode(words, [prompt + completion])[0]
    at_inference = encode_prompts(words, llama(vocabulary=60_000), [Prompt(prompt)], 1)[prompt]
    assert found.ids[: found.prompt] == at_inference
    assert found.ids[-1] == eos and eos not in found.ids[found.prompt : -1]
    assert words.decode(
        found.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    ) == words.decode(whole, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    if whole[: found.prompt] == at_inference:
        assert found.ids == [*whole, eos]
    return found.ids == [*whole, eos]


def test_a_prompt_has_the_tokens_of_inference_and_the_text_comes_back(byte_level):
    natural = [assert_boundary(byte_level, *pair, byte_level.eos_token_id) for pair in BOUNDARIES]
    # A space or half a word before the boundary: the whole text has a token that straddles it.
    assert natural[0] and not natural[1] and not natural[2]


@pytest.mark.parametrize("name", ["models/stories260K", "models/gpt2-tokenizer"])
def test_real_tokenizers_keep_the_boundary(shared, name):
    words = AutoTokenizer.from_pretrained(shared / name)
    natural = [assert_boundary(words, *pair, 1 if "stories" in name else 50256) for pair in BOUNDARIES]
    assert natural[0] and not all(natural)


def test_what_is_learned(byte_level):
    words = tokenizer()
    pair = example("w1 w2", " w3 w4")
    assert ids_of(words, pair) == Tokens([1, 2, 3, 4, EOS], prompt=2, start=2)
    assert ids_of(words, pair, on_text=True) == Tokens([1, 2, 3, 4, EOS], prompt=2, start=1)
    assert ids_of(words, pair._replace(ends=False)) == Tokens([1, 2, 3, 4], prompt=2, start=2)
    # Without BOS, the first token of a text without prompt is read only.
    assert ids_of(words, example("", "w5 w6")) == Tokens([5, 6, EOS], prompt=1, start=1)


def test_eos_stands_once_where_the_text_has_it_already():
    words = tokenizer()
    once = Tokens([1, 2, 3, EOS], prompt=2, start=2)
    for completion in (" w3", " w3 <end>", " w3 <end> <end>"):
        assert ids_of(words, example("w1 w2", completion)) == once


def test_a_special_token_inside_a_text_is_refused():
    with pytest.raises(DataError, match="here: the text holds '<end>', a special token"):
        ids_of(tokenizer(), example("w1", " w2 <end> w3"))
    with pytest.raises(DataError, match="nothing is left to learn"):
        ids_of(tokenizer(), example("", "w1", ends=False))


def test_the_end_token_is_never_pad_if_there_is_another():
    words = tokenizer()
    assert end_token((0,), words) == 0
    words.pad_token = "<end>"
    assert end_token((0, 7), words) == 7 and end_token((0,), words) == 0
    assert end_token((5, 6), words) == 5


def test_the_story_models_end_with_the_token_they_were_trained_with(stories260K):
    words = load_tokenizer(str(stories260K))
    assert (words.eos_token_id, words.pad_token_id) == (2, 2)
    assert end_token((1, 2), words) == 1


# Batches


def test_every_example_is_in_one_batch_of_an_epoch_and_none_is_small():
    lengths = [(7 * n) % 31 + 1 for n in range(1003)]
    batches = epoch_batches(lengths, 10, 0, seed=1)
    assert sorted(row for batch in batches for row in batch) == list(range(1003))
    assert len(batches) == 101 and {len(batch) for batch in batches} == {9, 10}
    assert batches == epoch_batches(lengths, 10, 0, seed=1)
    assert batches != epoch_batches(lengths, 10, 1, seed=1) and batches != epoch_batches(
        lengths, 10, 0, seed=2
    )
    # Padding: within a batch, lengths differ little; in random batches of 10 they differ by 25.
    spread = [max(lengths[r] for r in batch) - min(lengths[r] for r in batch) for batch in batches]
    assert sum(spread) / len(spread) < 3
    assert [lengths[batch[0]] for batch in batches] != sorted(lengths[batch[0]] for batch in batches)
