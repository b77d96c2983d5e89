"""The options of the evaluate stage; docs/evaluation.md explains the tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from talltree.config import option
from talltree.data.corpus_options import BOUNDARIES
from talltree.errors import ConfigError
from talltree.evals.finetune_options import FinetuneOptions

_DOCUMENTS = "what a document is: auto (text: separator; JSONL and datasets: a row), line, blank_line, ..."


@dataclass(frozen=True)
class TextOptions:
    """Where texts are read from and what a document is in them."""

    data: str = option("", "text or JSONL file, folder of them, or hub dataset")
    column: str = option("text", "column of JSONL rows or of a dataset that holds the text")
    split: str = option("validation", "split of a hub dataset")
    documents: str = option("auto", _DOCUMENTS, choices=BOUNDARIES)
    separator: str = option("<|endoftext|>", "what stands between the documents of a text file")
    max_documents: int | None = option(
        None, "read this many documents from the start of each; null: all", unit="documents", low=1
    )


@dataclass(frozen=True)
class LossOptions(TextOptions):
    """Held-out loss: nats per token and bits per byte."""

    stride: int | None = option(
        None,
        "documents longer than the context: how far the window moves on; null: half the context",
        unit="tokens",
        low=1,
    )
    end_token: bool = option(
        False, "score the EOS after each document, too, as pretrain's held-out loss does"
    )


@dataclass(frozen=True)
class BlimpOptions:
    """BLiMP: 67 paradigms of minimal pairs."""

    data: str = option("nyu-mll/blimp", "folder with one NAME.jsonl a paradigm, or a hub dataset")
    leading_space: bool = option(False, "put a space before each sentence, as lm-eval does")


@dataclass(frozen=True)
class StoryOptions:
    """Samples of each model from the same prompts, and what is measured of them."""

    prompt: str = option("Once upon a time", "the prompt where `prompts` is not given")
    prompts: str | None = option(None, "JSONL file with a `prompt` column, or .txt with a prompt a line")
    max_prompts: int | None = option(
        None, "take this many from the start of `prompts`; null: all", unit="prompts", low=1
    )
    seeds: list[int] = option([0, 1, 2], "seeds of the draws, the same for every model", low=0)
    samples: int = option(4, "stories from each prompt with each seed", unit="stories", low=1)
    max_completion_length: int = option(200, "longest completion", unit="tokens", low=1)
    temperature: float = option(1.0, "logits are divided by this", above=0)
    batch_size: int = option(64, "stories sampled at a time; changes which are drawn", unit="stories", low=1)
    judge: str | None = option(None, "model whose perplexity of the stories is measured; null: none")
    training: TextOptions = option(
        TextOptions(split="train"), "text that the stories are searched for copies of; none: not searched"
    )
    ngram: int = option(8, "runs of this many words are looked for in the training text", unit="words", low=1)
    prompt_ngram: int = option(4, "runs of this many words are looked for in the prompt", unit="words", low=1)

    def check(self) -> None:
        """Raises ConfigError for no seed, or for one given twice."""
        if not self.seeds:
            raise ConfigError("stories.seeds is empty; give at least one, such as [0]")
        for seed in self.seeds:
            if self.seeds.count(seed) > 1:
                raise ConfigError(f"stories.seeds names {seed} twice, which would count one draw as two")


@dataclass(frozen=True)
class Config:
    """Evaluate models: held-out loss, BLiMP, stories, GLUE and MSGS, with intervals, cached by model."""

    models: list[str] = option(
        [],
        "models: `seedling`, hub names, model folders, run folders, checkpoints; NAME=MODEL gives it a name, "
        "NAME=MODEL,MODEL,MODEL is one setting trained with several seeds",
    )
    tasks: str = option("blimp", "comma-separated: loss, blimp, stories, glue, msgs, or parts: blimp:NAME")
    loss: LossOptions = option(LossOptions(), "held-out loss")
    blimp: BlimpOptions = option(BlimpOptions(), "BLiMP")
    stories: StoryOptions = option(StoryOptions(), "story measures")
    glue_data: str | None = option(None, "folder with the GLUE and SuperGLUE files; null: the hub")
    msgs_data: str | None = option(
        None,
        "folder with the MSGS files, msgs.zip of github.com/nyu-mll/msgs unpacked; no hub dataset has them",
    )
    finetune: FinetuneOptions = option(FinetuneOptions(), "fine-tuning tasks: glue and msgs")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "where to compute; auto: cuda where there is one")
    cache_dir: str | None = option(
        None, "folder of finished parts, by model, data and options; null: eval-cache beside output_dir"
    )
    write_card: bool = option(False, "put the results into the model card (README.md) of each model folder")
    output_dir: str = option("runs/eval", "folder of this evaluation; must not exist yet")
    resume: str | None = option(None, "evaluate folder to continue; its own config is used")

    def check(self) -> None:
        """Raises ConfigError where there is nothing to evaluate."""
        if self.resume is not None:
            return
        if not self.models:
            raise ConfigError(
                "no model is named; for example: talltree evaluate runs/young/final --tasks blimp"
            )
        for name in self.models:
            if self.models.count(name) > 1:
                raise ConfigError(f"models names {name} twice; give each once")
        if not self.task_names:
            raise ConfigError("tasks names no task; use loss, blimp, stories, glue, msgs")
        if "loss" in self.task_names and not self.loss.data:
            raise ConfigError("the task loss needs held-out texts: --loss.data valid.txt")

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks as given, each once."""
        return tuple(dict.fromkeys(name.strip() for name in self.tasks.split(",") if name.strip()))
