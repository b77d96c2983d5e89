"""Stage `tokenizer`: round trip, special tokens, determinism, loading."""

import json

import pytest
from transformers import AutoTokenizer

from talltree.data.corpora import encode
from talltree.errors import DataError, RunError
from talltree.stages import tokenizer as stage

TEXT = "tree tall tower tiny tiger took two turtles to the town and then they talked about apples at dawn"
WORDS = TEXT.split()
HOSTILE = [
    "",
    " ",
    "\n\n\t  x",
    "a<|endoftext|>b <|pad|>",
    "1234567890.5e-3",
    "\x00\x01\x7f",
    "\ufeffbom \u202e\u200b",
    "é e\u0301 ﬁ ﷽ 𝔘 😀👩‍👩‍👧",
    "trailing  spaces   \n",
    "don't “quote” -- O'Neil's",
    "a" * 5000,
    "".join(map(chr, range(0x20, 0x250))),
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "stories.jsonl"
    lines = (
        json.dumps(
            {"text": " ".join(WORDS[(i * k) % len(WORDS)] + str(i % 7) * (k % 3) for k in range(1, 30))}
        )
        for i in range(300)
    )
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def folder(corpus, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "tok"
    stage.run(stage.Config(dataset_name=corpus, output_dir=str(output), vocab_size=300, validation_share=0.1))
    return output


def test_hostile_text_comes_back_unchanged(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder / "final")
    for text, ids in zip(HOSTILE, encode(tokenizer, HOSTILE), strict=True):
        assert tokenizer.decode(ids) == text
        assert not {tokenizer.eos_token_id, tokenizer.pad_token_id} & set(ids)


def test_special_tokens_and_the_start_of_a_document(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder / "final")
    assert len(tokenizer) == 300
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id) == (0, 0, 1)
    assert tokenizer("")["input_ids"] == [0]
    ids = tokenizer("tall tree")["input_ids"]
    assert ids[0] == 0
    assert 0 not in ids[1:]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "tall tree"
    digits = encode(tokenizer, ["2048"])[0]
    assert [tokenizer.decode([each]) for each in digits] == ["2", "0", "4", "8"]


def test_files_are_those_that_every_version_reads(folder):
    content = json.loads((folder / "final" / "tokenizer_config.json").read_text())
    assert content["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (folder / "final" / "tokenizer.json").is_file()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["vocab_size"] == 300
    assert summary["validation_bytes_per_token"] > 1


def test_training_is_deterministic(corpus, folder, tmp_path):
    stage.run(
        stage.Config(
            dataset_name=corpus, output_dir=str(tmp_path / "b"), vocab_size=300, validation_share=0.1
        )
    )
    name = "final/tokenizer.json"
    assert (tmp_path / "b" / name).read_bytes() == (folder / name).read_bytes()


def test_a_corpus_too_small_for_the_vocabulary_and_a_used_folder(corpus, folder, tmp_path):
    with pytest.raises(DataError, match="vocab_size 60000"):
        stage.run(stage.Config(dataset_name=corpus, output_dir=str(tmp_path / "c"), vocab_size=60000))
    with pytest.raises(RunError, match="not empty"):
        stage.run(stage.Config(dataset_name=corpus, output_dir=str(folder), vocab_size=300))
