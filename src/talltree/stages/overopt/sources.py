"""What is sampled: the reference and every checkpoint of the runs, found, checked and loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from talltree import checkpoint
from talltree.data.prompts import literal_prompts, read_prompts, split_prompts
from talltree.errors import ConfigError, RunError
from talltree.models.load import load_model, load_tokenizer
from talltree.models.policy import add_lora, trainable
from talltree.run import CONFIG, Run
from talltree.stages import fresh
from talltree.stages.fresh import Loaded, Sampling
from talltree.stages.overopt.config import Config
from talltree.types import Prompt

BASE = "base"
SAMPLES = 256


class Source(NamedTuple):
    """One checkpoint: its name in files and pages, its run, step and folder."""

    name: str
    run: str
    step: int
    folder: Path


class Plan(NamedTuple):
    """What a config asks for, with the blanks filled in from the first run."""

    reference: str
    sources: list[Source]
    proxy: str
    prompts: list[Prompt]
    sampling: Sampling
    best_of: int


def plan(config: Config) -> Plan:
    """The measurement that a config asks for, looked at before anything is loaded.

    Raises RunError for a run without checkpoints, ConfigError for runs from different models, temperatures or
    cuts, and for runs of different rewards where no proxy is named.
    """
    kept = [_rl_config(given) for given in config.runs]
    first = kept[0] if kept else {}
    if config.proxy is None and len({str(each["reward"]) for each in kept}) > 1:
        listed = ", ".join(dict.fromkeys(str(each["reward"]) for each in kept))
        raise ConfigError(f"the runs differ in reward ({listed}); name one as proxy, or measure them apart")
    for key in ("model_name_or_path", "temperature", "truncate_token", "truncate_after"):
        values = [each.get(key) for each in kept]
        if config.__dict__.get(key) is None and len(set(values)) > 1:
            raise ConfigError(
                f"the runs differ in {key} ({', '.join(map(str, dict.fromkeys(values)))}); KL and best-of-n "
                "need one reference, so measure them apart"
            )
    prompts = _prompts(config, first)
    different = len({prompt.text for prompt in prompts})
    sampling = Sampling(
        (config.seed,),
        config.num_generations or max(2, -(-SAMPLES // different)),
        config.max_completion_length or int(first.get("max_completion_length") or 96),
        config.temperature or float(first.get("temperature") or 1.0),
        fresh.cut_of(first, config.runs[0]) if first else None,
    )
    proxy = config.proxy or str(first["reward"])
    reference = config.model_name_or_path or str(first.get("model_name_or_path") or "seedling")
    return Plan(reference, _sources(config.runs), proxy, prompts, sampling, config.best_of_n)


def _rl_config(given: str) -> dict[str, Any]:
    folder = Run.open(Path(given).expanduser())
    kept = folder.config
    if "reward" not in kept or "model_name_or_path" not in kept:
        raise RunError(f"{folder.folder} is no rl run: its {CONFIG} has no reward")
    return kept


def _sources(runs: Sequence[str]) -> list[Source]:
    found: list[Source] = []
    names = [Path(given).expanduser().resolve().name for given in runs]
    for given, name in zip(runs, names, strict=True):
        label = name if names.count(name) == 1 else str(Path(given))
        # Step 0 is the reference itself, which is sampled anyway.
        steps = [
            Source(f"{label}/step-{step}", label, step, path)
            for step, path in checkpoint.step_folders(Path(given).expanduser() / "checkpoints")
            if step > 0
        ]
        if not steps:
            raise RunError(
                f"{given} has no checkpoint after step 0; train with --checkpoint_every 1 and "
                "--keep_checkpoints 1000 to keep every step"
            )
        found += steps
    return found


def _prompts(config: Config, first: dict[str, Any]) -> list[Prompt]:
    if config.prompts is not None:
        return read_prompts(config.prompts)
    if isinstance(first.get("prompts"), str):
        return split_prompts(read_prompts(first["prompts"]), first["held_out"]).held_out
    return literal_prompts([str(first.get("prompt") or config.prompt)])


def load_source(source: Source, device: torch.device) -> Loaded:
    """A checkpoint's policy, adapters on their base. Raises RunError for a damaged one."""
    checkpoint.verify(source.folder)
    kept = Run.open(source.folder.parent.parent).config
    if kept.get("lora_r") is None:
        return fresh.load(str(source.folder), device)
    rank = int(kept["lora_r"])
    model = add_lora(
        load_model(kept["model_name_or_path"]), rank, kept.get("lora_alpha") or 2.0 * rank, kept["seed"]
    )
    adapters = checkpoint.load_state(source.folder)["adapters"]
    with torch.no_grad():
        for name, parameter in trainable(model).items():
            parameter.copy_(adapters[name])
    return fresh.prepared(source.name, model, load_tokenizer(kept["model_name_or_path"]), device)


def require_start(source: Source, reference: Loaded) -> None:
    """Raises RunError where the reference is not the model that the checkpoint's run started from."""
    if checkpoint.load_state(source.folder).get("reference_sha256") != reference.sha256:
        raise RunError(
            f"{reference.name} is not the model that {source.folder.parent.parent} started from: its weights "
            "have changed, so the KL would be another one; give the old one as model_name_or_path"
        )
