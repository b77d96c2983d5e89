"""Stage `sft`: the loss, what is written, bad input."""

import dataclasses
import hashlib
import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from talltree import checkpoint
from talltree.cli import main
from talltree.config import flaws, from_dict, to_dict
from talltree.data.corpus_options import CorpusOptions
from talltree.errors import ConfigError, ContractError, DataError, ModelError, RunError, TallTreeError
from talltree.models.load import load_model
from talltree.run import Run
from talltree.stages import sft
from talltree.stages.sft import loop
from talltree.stages.sft.parts import load_parts
from talltree.stages.sft.tokens import Tokens

from ..tiny import gpt2, llama, save

EOS = 0
"""`<end>` of the toy tokenizer."""

CORPUS = CorpusOptions(validation_share=0.2)


# The loss


@pytest.fixture
def task(tmp_path):
    """A tiny model and pairs whose completion repeats the prompt's last word."""
    model = save(tmp_path / "model", llama())
    data = tmp_path / "pairs.jsonl"
    texts = [(f"w{1 + n % 9} w{1 + n // 9}", f" w{1 + n // 9} w{1 + n // 9}") for n in range(45)]
    data.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in texts))

    def config(**changed):
        return sft.Config(
            **{
                "model_name_or_path": str(model), "dataset_name": str(data),
                "output_dir": str(tmp_path / "run"), "corpus": CORPUS, "batch_size": 8, "steps": 6,
                "validation_every": 2, "checkpoint_every": 2, "samples": 2, "max_completion_length": 4,
                "learning_rate": 0.01,
            } | changed
        )  # fmt: skip

    config.model, config.data, config.folder = model, data, tmp_path
    return config


def mean_loss(model, examples):
    """-log p of the learned tokens, one example at a time, in float64."""
    nats = tokens = 0
    for each in examples:
        logp = torch.log_softmax(model(torch.tensor([each.ids])).logits[0].double(), -1)
        for place in range(each.start, len(each.ids)):
            nats, tokens = nats - logp[place - 1, each.ids[place]], tokens + 1
    return nats / tokens


@pytest.mark.parametrize("parts_asked", [None, 1, 3, 8])
@pytest.mark.parametrize("loss_on", ["completion", "text"])
def test_loss_and_gradient_are_those_of_one_example_at_a_time(task, loss_on, parts_asked):
    config = task(gradient_accumulation_steps=parts_asked, loss_on=loss_on, max_grad_norm=None)
    parts = load_parts(config)
    chosen = [*parts.train[:7], Tokens([1, 2, 3, 4, 5, 6, 7, 8, EOS], 3, 1 if loss_on == "text" else 3)]
    expected = mean_loss(parts.model, chosen)
    gradient = torch.autograd.grad(expected, parts.model.model.layers[0].mlp.up_proj.weight)[0]
    seen = {}
    parts.optimizer.step = lambda: seen.update(
        gradient=parts.model.model.layers[0].mlp.up_proj.weight.grad.clone()
    )
    row = loop._update(config, parts, 0, chosen)
    assert row["loss/train"] == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(seen["gradient"], gradient, rtol=1e-4, atol=1e-6)
    assert row["tokens"] == (7 * 4 + 8 if loss_on == "text" else 7 * 3 + 6)
    assert parts.model.model.layers[0].mlp.up_proj.weight.grad is None


def test_weights_stay_where_the_loss_is_not_finite(task):
    parts = load_parts(task())
    with torch.no_grad():
        parts.model.model.norm.weight[0] = math.nan
    before = parts.model.model.layers[0].mlp.up_proj.weight.detach().clone()
    with pytest.raises(ContractError, match="loss nan .* not finite; the weights were left as they were"):
        loop._update(task(), parts, 0, parts.train[:4])
    assert torch.equal(parts.model.model.layers[0].mlp.up_proj.weight, before)


# A whole run


@pytest.mark.parametrize("lora_r", [None, 2])
def test_it_learns_and_keeps_the_best(task, lora_r, capsys):
    sft.run(task(steps=60, validation_every=10, checkpoint_every=30, lora_r=lora_r, learning_rate=0.03))
    folder = Run.open(task.folder / "run")
    summary, rows = folder.summary(), folder.metrics()
    losses = {row["step"]: row["loss/validation"] for row in rows if "loss/validation" in row}
    assert list(losses) == list(range(0, 61, 10))
    assert summary["after"]["loss"]["mean"] < summary["before"]["loss"]["mean"] - 0.5
    assert summary["change"]["high"] < 0
    difference = summary["after"]["loss"]["mean"] - summary["before"]["loss"]["mean"]
    assert summary["change"]["mean"] == pytest.approx(difference)
    best = min(losses, key=losses.get)
    assert summary["best_step"] == summary["final_step"] == best
    assert summary["after"]["loss"]["mean"] == pytest.approx(losses[best], rel=1e-9)
    assert summary["before"]["loss"]["mean"] == pytest.approx(losses[0], rel=1e-9)
    # What is stored, loaded by the library alone and measured one example at a time, has the same loss.
    stored = AutoModelForCausalLM.from_pretrained(folder.final).eval()
    held_out = load_parts(task()).held_out
    assert mean_loss(stored, held_out).item() == pytest.approx(losses[best], rel=1e-4)
    assert not list(folder.final.glob("adapter*"))
    assert AutoTokenizer.from_pretrained(folder.final)("w3")["input_ids"] == [3]
    # Completions of two words and an end token; each epoch takes each example once.
    train = summary["data"]["train"]["examples"]
    assert train + summary["data"]["held_out"]["examples"] == 45
    batches = math.ceil(train / 8)
    assert summary["epochs"] == 60 / batches
    assert summary["learned_tokens"] == rows[-1]["tokens"]
    if 60 % batches == 0:
        assert summary["learned_tokens"] == 60 // batches * train * 3
    assert folder.samples()["step"].to_pylist() == [step for step in losses for _ in range(2)]
    prompts = {each.prompt for each in load_parts(task()).held_out_examples}
    assert set(folder.samples()["prompt"].to_pylist()) <= prompts
    before = [json.loads(line) for line in (folder.folder / "before.jsonl").read_text().splitlines()]
    assert sum(row["nats"] for row in before) / sum(row["tokens"] for row in before) == pytest.approx(
        losses[0]
    )
    card = (folder.final / "README.md").read_text(encoding="utf-8")
    assert str(task.folder) not in card
    for fact in (
        "fine-tuned by `talltree sft`", f"weights SHA-256 `{summary['base_sha256']}`", "| llama |",
        f"| train | {train} |", f"`{summary['corpus']['sources'][0]['content_sha256']}`",
        f"| after | {summary['after']['loss']['mean']:.4f} (",
    ):  # fmt: skip
        assert fact in card, fact
    assert f"run folder: {folder.folder}" in capsys.readouterr().out


def test_a_model_that_gets_worse_is_given_back_and_patience_ends_the_run(task, capsys):
    sft.run(task(steps=50, learning_rate=0.5, validation_every=1, patience=3))
    folder = Run.open(task.folder / "run")
    summary = folder.summary()
    losses = {row["step"]: row["loss/validation"] for row in folder.metrics()}
    best = min(losses, key=losses.get)
    assert summary["steps"] == best + 3 < 50
    assert summary["stop_reason"] == "3 held-out losses without a new best"
    assert summary["final_step"] == best
    if best == 0:
        assert "final/ is that model" in capsys.readouterr().err
        assert torch.equal(
            load_model(str(folder.final)).model.norm.weight, load_model(str(task.model)).model.norm.weight
        )


def test_epochs_give_the_number_of_updates(task):
    # 8 an update, of 45 pairs with another prompt each but where the hash holds a prompt out.
    parts = load_parts(task(steps=None, epochs=2.5))
    held = [f"w{1 + n % 9} w{1 + n // 9}" for n in range(45)]
    held = [p for p in held if hashlib.sha256(p.encode()).digest()[:8] < (2**64 // 5).to_bytes(8)]
    assert len(parts.train) == 45 - len(held) and 0 < len(held) < 20
    batches = math.ceil(len(parts.train) / 8)
    assert parts.steps == math.ceil(2.5 * batches)
    assert load_parts(task(steps=None)).steps == batches


def test_continuations_of_texts_and_a_validation_file(task):
    lines = [{"text": f"w{n}\n\nw2\n\nw3"} for n in range(1, 10)]
    held = [{"text": "w9\n\nw4 w5"}, {"text": "w11\n\nw5"}]
    config = task(dataset_name="", corpus=explicit(task, lines, held), split="sentence", batch_size=4)
    sft.run(config)
    summary = Run.open(config.output_dir).summary()
    assert summary["data"]["train"]["examples"] == 8, "one story begins like a held-out one"
    assert summary["corpus"]["overlaps_dropped"] == 1 and summary["data"]["held_out"]["examples"] == 2
    assert list(summary["corpus"]["sha256"]) == ["bad/bad.jsonl", "held/held.jsonl"]
    assert json.loads((task.folder / "run" / "corpus.json").read_text()) == summary["corpus"]
    prompts = Run.open(config.output_dir).samples()["prompt"].to_pylist()
    assert set(prompts) == {"w9", "w11"}


def test_a_later_prompt_of_a_held_out_text_leaves_train(task):
    lines = [{"text": f"w{n}\n\nw2\n\nw3"} for n in range(1, 8)]
    # Pieces of two words and an end token: the held-out text's second piece begins like the first line.
    held = [{"text": "w11\n\nw5\n\nw1\n\nw6"}]
    config = task(
        dataset_name="", corpus=explicit(task, lines, held), split="sentence", batch_size=4, example_tokens=8
    )
    parts = load_parts(config)
    assert [each.prompt for each in parts.held_out_examples] == ["w11"], "one piece of four words"
    parts = load_parts(dataclasses.replace(config, example_tokens=3))
    assert [each.prompt for each in parts.held_out_examples] == ["w11", "w1"]
    assert parts.counts["shared_prompts"] == 1 and len(parts.train) == 6
    assert parts.counts["undivided"] == 7


def test_texts_alone_are_sampled_from_their_start(task):
    data = task.folder / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": f"w{n} w2 w3"}) + "\n" for n in range(1, 20)))
    sft.run(task(dataset_name=str(data), steps=2, samples=3))
    assert Run.open(task.folder / "run").samples().num_rows == 2 * 3


def test_gpt2_with_dropout_is_trained_without_it(task):
    """Otherwise two updates from one state would differ."""
    model = save(task.folder / "gpt2", gpt2(dropout=0.5))
    rows = []
    for _ in range(2):
        parts = load_parts(task(model_name_or_path=str(model)))
        rows.append(loop._update(task(), parts, 0, parts.train[:4])["loss/train"])
    assert rows[0] == rows[1]


# Bad input


def test_config_is_whole_and_repeats_itself(task):
    assert flaws(sft.Config) == []
    assert from_dict(sft.Config, to_dict(task())) == task()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset_name": ""}, "--dataset_name is required"),
        ({"epochs": 2, "steps": 3}, "epochs 2 and steps 3 both say when to end"),
        ({"corpus": {"prompt": "{a}"}}, "prompt is given without completion"),
        ({"corpus": {"completion": "summary"}}, "completion 'summary' names no column; write it as {column}"),
        ({"prompt_sentences": 2}, "prompt_sentences 2 would change nothing without split sentence"),
        ({"split": "sentence", "corpus": {"completion": "{a}"}}, "leave out corpus.prompt and corpus.comp"),
        ({"split": "sentence", "prompt_sentences": 1, "prompt_tokens": 9}, "both say how long a prompt is"),
        (
            {"split": "sentence", "prompt_tokens": 64, "example_tokens": 64},
            "leaves nothing of example_tokens 64",
        ),
        ({"gradient_accumulation_steps": 17}, "more than the 16 examples"),
        ({"loss_on": "prompt"}, "allowed: one of"),
        ({"learning_rates": 1}, "unknown option .* nearest known: learning_rate"),
    ],
)
def test_bad_configs_are_refused_in_one_line(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        from_dict(sft.Config, {"dataset_name": "a.jsonl", **changes})
    assert "\n" not in str(caught.value)


LINE = {"prompt": "w1", "completion": " w2"}
HELD = {"prompt": "w9 w9", "completion": " w2"}


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def explicit(task, lines, held=(HELD,), **changed):
    """A corpus whose held-out examples are given apart."""
    rows = [
        {"name": "bad", "path": jsonl(task.folder / "bad.jsonl", lines), "into": "train"},
        {"name": "held", "path": jsonl(task.folder / "held.jsonl", held), "into": "validation"},
    ]
    return CorpusOptions(sources=rows, overlaps="keep_held_out", **changed)


@pytest.mark.parametrize(
    ("lines", "corpus", "changes", "error", "message"),
    [
        ([], {}, {}, DataError, "bad.jsonl is empty"),
        ([{"prompt": "w1", "answer": "w2"}], {}, {}, DataError,
         "bad.jsonl, line 1: no column `text`; found: prompt, answer; name yours in corpus.column"),
        ([LINE, {"prompt": "w2"}], {}, {}, DataError, "line 2: no column `completion`; found: prompt"),
        ([LINE | {"completion": 3}], {}, {}, DataError, "line 1: `completion` is int, a string is needed"),
        ([LINE, {"prompt": "w2", "completion": " w3" * 70}], {}, {"batch_size": 1}, DataError,
         "1 of 3 examples are longer than the model's context of 64 tokens, such as .*line 2 with 72 "),
        ([LINE | {"prompt": f"w{n}"} for n in range(1, 9)], {}, {"batch_size": 16}, DataError,
         "bad, held has 8 training examples, fewer than batch_size 16; .* set batch_size 8 or less"),
        ([LINE], {}, {"max_length": 65}, ConfigError, "max_length 65 is more than the model's context of 64"),
        ([HELD], {}, {}, DataError, "no document fell into train"),
        ([LINE | {"completion": f"w{n}"} for n in (4, 5)], {"column": "completion"},
         {"split": "sentence"}, DataError,
         r"no text of bad, held has a sentence for its prompt and one for its completion \(2 were tried\)"),
    ],
)  # fmt: skip
def test_data_that_cannot_be_used_is_one_line_and_leaves_no_folder(
    task, lines, corpus, changes, error, message
):
    with pytest.raises(error, match=message) as caught:
        sft.run(task(dataset_name="", corpus=explicit(task, lines, **corpus), **changes))
    assert "\n" not in str(caught.value)
    assert not (task.folder / "run").exists()


def test_missing_data_is_named(task):
    with pytest.raises(DataError, match=r"corpus none.jsonl not found"):
        sft.run(task(dataset_name="none.jsonl"))


def test_what_is_left_out_is_said_and_counted(task, capsys):
    lines = [LINE | {"prompt": f"w{n}"} for n in range(1, 9)]
    lines += [lines[0], {"prompt": "w10", "completion": " \n"}, HELD]
    sft.run(task(dataset_name="", corpus=explicit(task, lines), steps=1))
    found = Run.open(task.folder / "run").summary()["corpus"]
    assert (found["duplicates_dropped"], found["empty_dropped"], found["overlaps_dropped"]) == (1, 1, 1)
    assert (found["train_documents"], found["validation_documents"]) == (8, 1)
    out = capsys.readouterr().out
    for words in (
        "that stand twice",
        "without a text or a completion",
        "whose prompt is held out explicitly",
    ):
        assert f"left out: 1 examples {words}" in out


def test_longer_examples_are_left_out_and_counted_where_that_is_asked_for(task, capsys):
    data = task.folder / "long.jsonl"
    long = [{"prompt": "w10", "completion": f" w{n}" * 70} for n in (3, 4)]
    data.write_text(task.data.read_text() + "".join(json.dumps(row) + "\n" for row in long))
    sft.run(task(dataset_name=str(data), too_long="drop", steps=1))
    assert Run.open(task.folder / "run").summary()["data"]["too_long"] == 2
    assert "left out: 2 examples longer than max_length or the context" in capsys.readouterr().out


def test_a_tokenizer_that_does_not_fit_the_model_is_one_line(task):
    model = llama(vocabulary=7)
    model.save_pretrained(task.model)
    with pytest.raises(
        ModelError, match=r"gives token \d+ for .*pairs.jsonl, line \d+, but the model has 7 tokens"
    ):
        sft.run(task())
    assert not (task.folder / "run").exists()


def test_an_unknown_key_in_a_file_and_on_the_command_line(task, capsys):
    (task.folder / "a.yaml").write_text("dataset_name: x\nlearning_rat: 1\n")
    assert main(["sft", "--config", str(task.folder / "a.yaml")]) == 2
    assert "line 2: learning_rat: unknown option" in capsys.readouterr().err
    assert main(["sft", "--loss_in", "text"]) == 2
    assert "nearest known: --loss_on" in capsys.readouterr().err


def test_a_full_disk_in_a_checkpoint_is_one_line_and_loses_nothing(task, monkeypatch):
    write, calls = checkpoint.save_state, []

    def full(folder, tree):
        calls.append(tree["step"])
        if tree["step"] == 4:
            (folder / "half").write_bytes(b"1")
            raise OSError(28, "No space left on device")
        write(folder, tree)

    monkeypatch.setattr(checkpoint, "save_state", full)
    with pytest.raises(RunError, match="step-4: No space left on device .* continue with --resume"):
        sft.run(task())
    monkeypatch.setattr(checkpoint, "save_state", write)
    folder = task.folder / "run"
    assert calls == [0, 2, 4]
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"step-0", "step-2"}
    sft.run(sft.Config(resume=str(folder)))
    other = task(output_dir=str(task.folder / "whole"))
    sft.run(other)
    for name in ("model.safetensors", "config.json"):
        assert (folder / "final" / name).read_bytes() == (task.folder / "whole" / "final" / name).read_bytes()


def test_an_existing_folder_is_refused_before_anything_is_loaded(task):
    (task.folder / "run").mkdir()
    (task.folder / "run" / "mine").write_text("x")
    with pytest.raises(TallTreeError, match="exists and is not empty"):
        sft.run(task(model_name_or_path="/nowhere"))
