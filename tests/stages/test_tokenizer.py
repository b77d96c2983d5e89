"""Stage `tokenizer`: round trip, special tokens, determinism, loading."""

import json

import pytest
from transformers import AutoTokenizer

from talltree.config import flaws, from_dict, to_dict
from talltree.data.corpora import open_corpus
from talltree.data.corpus_options import CorpusOptions
from talltree.data.tokens import encode
from talltree.errors import ConfigError, DataError, RunError
from talltree.models.load import save_tokenizer
from talltree.stages import tokenizer as stage
from talltree.stages.tokenizer.train import train

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
    "line\r\nline\rline\n\r\n",
    " " * 3000 + "x" + " " * 3000,
    "\t" * 200,
    "".join(map(chr, range(0x20))) + "\x85\u2028\u2029",
    "e" + "\u0301" * 300 + " a\u0308\u0323",
    "क्षि ก็ 한국어 עִבְרִית \U0010ffff\ue000\ufffe",
    "<|endoftext|>" * 50 + "<|pad|><|endoftext|",
    "👨‍👩‍👧‍👦" * 100 + "🏳️‍🌈",
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
    stage.run(
        stage.Config(
            dataset_name=corpus,
            output_dir=str(output),
            vocab_size=300,
            corpus=CorpusOptions(validation_share=0.1),
        )
    )
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
            dataset_name=corpus,
            output_dir=str(tmp_path / "b"),
            vocab_size=300,
            corpus=CorpusOptions(validation_share=0.1),
        )
    )
    name = "final/tokenizer.json"
    assert (tmp_path / "b" / name).read_bytes() == (folder / name).read_bytes()


def test_a_corpus_too_small_for_the_vocabulary_and_a_used_folder(corpus, folder, tmp_path):
    with pytest.raises(DataError, match="vocab_size 60000"):
        stage.run(stage.Config(dataset_name=corpus, output_dir=str(tmp_path / "c"), vocab_size=60000))
    with pytest.raises(RunError, match="not empty"):
        stage.run(stage.Config(dataset_name=corpus, output_dir=str(folder), vocab_size=300))


def test_half_a_surrogate_pair_is_refused_in_a_corpus_and_in_a_text(folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folder / "final")
    with pytest.raises(DataError, match="character 1 of a text"):
        encode(tokenizer, ["a\udfff"])
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b\\ud83d"}\n', encoding="utf-8")
    with pytest.raises(
        DataError, match=r"bad\.jsonl, line 2: character 1 of `text` is half a surrogate pair"
    ):
        stage.run(stage.Config(dataset_name=str(path), output_dir=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_it_is_trained_on_the_training_split_alone(tmp_path):
    """A word of each document's own: only those of training documents can become tokens."""
    texts = [f"{word} " * 20 for word in (f"{a}{b}{a}{b}q" for a in "bcdfghjk" for b in "lmnprstv")]
    path = tmp_path / "words.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    options = CorpusOptions(validation_share=0.25, test_share=0.25)
    asked = {"dataset_name": str(path), "corpus": options, "vocab_size": 382}
    stage.run(stage.Config(output_dir=str(tmp_path / "run"), **asked))
    found = set(AutoTokenizer.from_pretrained(tmp_path / "run" / "final").get_vocab())
    corpus = open_corpus(options, str(path))
    for split in ("train", "validation", "test"):
        words = [text.split()[0] for text in corpus.texts(split)]
        assert len(words) > 5
        whole = [word for word in words if word in found or f"Ġ{word}" in found]
        assert len(whole) == (len(words) if split == "train" else 0)
    manifest = json.loads((tmp_path / "run" / "corpus.json").read_text())
    assert manifest == json.loads((tmp_path / "run" / "summary.json").read_text())["corpus"]
    assert manifest["sha256"] == {"words.jsonl": corpus.sha256["words.jsonl"]}


def test_further_special_tokens_are_whole_and_never_read_from_text(tmp_path):
    tokenizer = train(["a man and a plan"] * 3, 270, 1, ["<|user|>", "<|model|>"])
    save_tokenizer(tmp_path, tokenizer)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.convert_tokens_to_ids(["<|endoftext|>", "<|pad|>", "<|user|>", "<|model|>"]) == [0, 1, 2, 3]
    assert loaded("<|user|>a", add_special_tokens=False)["input_ids"][0] == 2
    assert loaded.decode([2, *encode(loaded, ["a"])[0]], skip_special_tokens=True) == "a"
    ids = encode(loaded, ["<|user|>a"])[0]
    assert 2 not in ids
    assert loaded.decode(ids) == "<|user|>a"
    assert loaded.pad_token_id != loaded.eos_token_id


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 511}, "vocab_size: 511 is not allowed; allowed: int, at least 512 and at most 65536"),
        ({"vocab_size": 65537}, "at most 65536"),
        ({"special_tokens": ["<|pad|>"]}, "'<|pad|>' is blank or there already"),
        ({"special_tokens": ["<|x|>", "<|x|>"]}, "'<|x|>' is blank or there already"),
        ({"special_tokens": [" "]}, "' ' is blank"),
        ({"dataset_name": ""}, "--dataset_name is required"),
        ({"corpus": {"subset": 0}}, "corpus.subset: 0 is not allowed"),
        ({"validation_share": 0.1}, "nearest known: corpus.validation_share"),
    ],
)
def test_bad_configs_are_refused_in_one_line(changes, message):
    with pytest.raises(ConfigError) as caught:
        from_dict(stage.Config, {"dataset_name": "a.txt", **changes})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_config_is_whole_and_its_default_is_32k():
    assert flaws(stage.Config) == []
    config = from_dict(stage.Config, {"dataset_name": "a.txt", "corpus": {"sources": []}})
    assert config.vocab_size == 32768
    assert from_dict(stage.Config, to_dict(config)) == config


def test_real_books_load_and_come_back(shared, tmp_path):
    texts = [
        path.read_text(encoding="utf-8") for path in sorted((shared / "data/gutenberg").glob("*.txt"))[:3]
    ]
    tokenizer = train(texts, 4096, 2)
    save_tokenizer(tmp_path, tokenizer)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert len(loaded) == 4096
    assert [loaded.decode(ids) for ids in encode(loaded, texts)] == texts
