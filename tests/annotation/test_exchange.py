"""CSV and pairs, there and back, as other programs read them, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from talltree.annotation.exchange import pair_rows, read_csv, read_judgements, write_csv, write_pairs
from talltree.data.preferences import Judgement, pairs, read_preferences
from talltree.errors import DataError


def judged(texts: tuple[str, ...] = ("a", "b", "c", "d"), **answer: Any) -> Judgement:
    return Judgement(prompt="p", candidates=texts, **answer)


EVERY_KIND = [
    Judgement(prompt="", candidates=("", ' x"y",\r\nz ', "=1+1", "é\u2028"), best=0, worst=2),
    judged(
        best=0,
        annotator="Ä, B",
        time="2025-03-01T12:30:00Z",
        tuple_id="t",
        order=(3, 1, 0, 2),
        seconds=0.1 + 0.2,
    ),
    judged(ranking=(1, 0), margin=0.0),
    judged(ratings=(1.0, 2.5, -3.0, 4.0)),
    judged(tie=True),
    judged(("one",), ratings=(3.0,)),
    judged(("x", ""), best=1),
]


def test_csv_comes_back_as_it_was(tmp_path: Path) -> None:
    write_csv(tmp_path / "p.csv", EVERY_KIND)
    assert read_csv(tmp_path / "p.csv") == EVERY_KIND
    assert read_judgements(tmp_path / "p.csv") == EVERY_KIND


def test_csv_is_what_the_csv_module_reads(tmp_path: Path) -> None:
    write_csv(tmp_path / "p.csv", EVERY_KIND[:2])
    with (tmp_path / "p.csv").open(encoding="utf-8", newline="") as file:
        first, second = csv.DictReader(file)
    assert first["candidate_1"] == ' x"y",\r\nz '
    assert (first["k"], first["best"], first["annotator"]) == ("4", "0", "")
    assert (second["order"], second["tie"], second["worst"]) == ("3 1 0 2", "", "")


def test_csv_with_few_columns_and_pairs_in_csv(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("prompt,candidate_0,candidate_1,candidate_2,best\np,a,b,,1\np,,b,c,0\n\np,a,b,c,2\n")
    assert read_csv(path) == [
        judged(("a", "b"), best=1), judged(("", "b", "c"), best=0), judged(("a", "b", "c"), best=2),
    ]  # fmt: skip
    path.write_text("\ufeffprompt,chosen,rejected,margin\np,a,b,0.5\n", encoding="utf-8")
    assert read_csv(path) == [judged(("a", "b"), best=0, worst=1, margin=0.5)]


HEADER = "prompt,candidate_0,candidate_1,best,worst,ratings,tie,k"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{HEADER}\np,a,b,0,0,,,", "line 2: best and worst are both 0; they must differ"),
        (f"{HEADER}\np,a,b,1,0,,,\np,a,b,2,,,,", "line 3: best 2 is not an index of a candidate, 0 to 1"),
        (f"{HEADER}\np,a,b,first,,,,", "line 2: best 'first' is not a whole number"),
        (f"{HEADER}\np,a,b,1.0,,,,", "line 2: best '1.0' is not a whole number"),
        (f"{HEADER}\np,a,b,,,1 x,,", "line 2: ratings 'x' is not a number"),
        (f"{HEADER}\np,a,b,,,1 nan,,", "line 2: ratings[1] nan is not a finite number"),
        (f"{HEADER}\np,a,b,,,,maybe,", "line 2: tie 'maybe' is not true or false"),
        (f"{HEADER}\np,a,b,,,,,", "line 2: there is no answer"),
        (f"{HEADER}\np,a,,0,,,,", "line 2: candidates holds 1 candidate, at least 2 are needed"),
        (f"{HEADER}\np,a,a,0,,,,", "line 2: candidates[0] and candidates[1] are the same text 'a'"),
        (f"{HEADER}\np,a,b,0,,,,3", "line 2: k 3 is not a number of candidates from 1 to 2"),
        (f"{HEADER}\np,a,b,0,,,,1", "line 2: k is 1, but candidate_1 or a later one holds a text"),
        (f"{HEADER}\np,a,b,0", "line 2: 4 cells, 8 columns; quote cells that hold commas"),
        (f'{HEADER}\n"two\nlines",a,b,0,1,,,\np,a,b,0,0,,,', "line 4: best and worst are both 0"),
        (f'{HEADER}\n"p,a,b,0', "line 2: not CSV (unexpected end of data)"),
        (
            "prompt,candidate_0,candidate_2,best\np,a,b,0",
            "line 2: candidate_1 is missing, though candidate_2",
        ),
        (
            "prompt,candidate_0,candidate_1,bset\np,a,b,0",
            "line 2: column 'bset' is unknown; did you mean best?",
        ),
        ("prompt,best,best\np,0,0", "line 1: the column 'best' is there twice"),
        ("prompt,chosen,rejected\np,a,a", "line 2: chosen and rejected are the same"),
        (HEADER, "holds no judgement"),
        ("", "holds no judgement"),
    ],
)
def test_bad_csv_is_refused_in_one_line_with_file_line_and_column(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "p.csv"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_csv(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_bytes(b"prompt,chosen,rejected\np,\xff,b\n")
    with pytest.raises(DataError, match="is not UTF-8 text"):
        read_csv(tmp_path / "p.csv")
    with pytest.raises(DataError, match=r"none\.csv not found"):
        read_csv(tmp_path / "none.csv")
    with pytest.raises(DataError, match=r"ending '\.xlsx' is not known; use \.jsonl or \.csv"):
        read_judgements(tmp_path / "p.xlsx")


def test_columns_may_be_ignored_by_name(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("id,prompt,chosen,rejected\n7,p,a,b\n")
    assert read_judgements(tmp_path / "p.csv", ["id"]) == [judged(("a", "b"), best=0, worst=1)]


# --- pairs -------------------------------------------------------------------------------------------------


def test_pairs_of_every_kind_by_hand(tmp_path: Path) -> None:
    judgements = [
        judged(best=1, worst=3),
        judged(("a", "b"), best=1),
        judged(tie=True),
        judged(("a",), ratings=(1,)),
    ]
    found = pair_rows(judgements, margins=True)
    assert [(row["chosen"], row["rejected"]) for row in found.rows] == [
        ("b", "a"), ("b", "c"), ("b", "d"), ("a", "d"), ("c", "d"), ("b", "a"),
    ]  # fmt: skip
    assert (found.undecided, found.with_margin) == (2, 0)
    assert set(found.rows[0]) == {"prompt", "chosen", "rejected"}


def test_margins_are_given_or_the_difference_of_ratings(tmp_path: Path) -> None:
    found = pair_rows(
        [judged(("a", "b"), best=1, margin=0.25), judged(("a", "b", "c"), ratings=(1, 4, 2))], True
    )
    assert [row["margin"] for row in found.rows] == [0.25, 3, 2, 1]
    write_pairs(tmp_path / "p.jsonl", found.rows)
    back = read_preferences(tmp_path / "p.jsonl")
    assert [(*j.candidates, j.margin) for j in back] == [
        ("b", "a", 0.25), ("b", "a", 3), ("b", "c", 2), ("c", "a", 1),
    ]  # fmt: skip
    assert [pairs(j) for j in back] == [[(0, 1)]] * 4


def test_margins_in_some_pairs_only_are_refused_and_may_be_left_out() -> None:
    some = [judged(("a", "b"), best=1, margin=0.5), judged(("a", "b"), best=0)]
    with pytest.raises(
        DataError, match="1 of 2 pairs have a margin, and readers of pairs need it in all or none"
    ):
        pair_rows(some, margins=True)
    assert all("margin" not in row for row in pair_rows(some, margins=False).rows)


def test_nothing_but_ties_is_refused() -> None:
    with pytest.raises(DataError, match="none of the 2 judgements prefers one candidate to another"):
        pair_rows([judged(tie=True)] * 2, margins=True)


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    judgements = [
        Judgement(prompt="Once", candidates=(f" a{i}", f" b{i}"), best=i % 2, margin=i / 2) for i in range(4)
    ]
    write_pairs(tmp_path / "pairs.jsonl", pair_rows(judgements, margins=True).rows)
    return tmp_path / "pairs.jsonl"


def test_datasets_reads_the_pairs(pairs_file: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    loaded = load_dataset(
        "json", data_files=str(pairs_file), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded[1] == {"prompt": "Once", "chosen": " b1", "rejected": " a1", "margin": 0.5}
    assert loaded.features["margin"].dtype == "float64"


def test_trl_trains_on_the_pairs(pairs_file: Path, tmp_path: Path, stories260K: Path) -> None:
    """TRL's own reward trainer takes the file as it is: its checks, its tokens and its margin."""
    trl = pytest.importorskip("trl", reason="TRL is not installed; pip install 'talltree[bench]'")
    from datasets import load_dataset
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(stories260K)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForSequenceClassification(
        LlamaConfig(vocab_size=len(tokenizer), num_labels=1, pad_token_id=tokenizer.pad_token_id, **sizes)
    )
    loaded = load_dataset(
        "json", data_files=str(pairs_file), split="train", cache_dir=str(tmp_path / "cache")
    )
    trainer = trl.RewardTrainer(
        model=model,
        args=trl.RewardConfig(
            output_dir=str(tmp_path / "out"), per_device_train_batch_size=4, max_steps=1, report_to=[],
            use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True,
        ),
        train_dataset=loaded,
        processing_class=tokenizer,
    )  # fmt: skip
    batch = next(iter(trainer.get_train_dataloader()))
    assert sorted(batch["margin"].tolist()) == [0.0, 0.5, 1.0, 1.5]
    trainer.train()


def test_the_rows_are_one_object_a_line(pairs_file: Path) -> None:
    rows = [json.loads(line) for line in pairs_file.read_text(encoding="utf-8").splitlines()]
    assert rows[0] == {"prompt": "Once", "chosen": " a0", "rejected": " b0", "margin": 0.0}
