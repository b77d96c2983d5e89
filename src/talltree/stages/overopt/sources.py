"""What is sampled: the reference and every checkpoint of the runs, found, checked and loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from talltree import checkpoint
from talltree.data.prompts import literal_prompts, read_prompts, split_prompts
from talltree.errors import ConfigError, RunError
from talltree.models.load import load_model, load_tokenizer, weights_sha256
from talltree.models.policy import add_lora, trainable
from talltree.run import CONFIG, Run
from talltree.stages import fresh
from talltree.stages.as_trained import OPTIONS, as_trained, rl_options
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
    """What a config asks for, with the blanks filled in from the runs.

    missing_end: what a completion without its required end scores, whatever a reward says; None for none.
    """

    reference: str
    sources: list[Source]
    proxy: str
    prompts: list[Prompt]
    sampling: Sampling
    best_of: int
    missing_end: float | None


def plan(config: Config) -> Plan:
    """The measurement that a config asks for, looked at before anything is loaded.

    Raises RunError for a run without checkpoints, ConfigError for runs from different models, or that drew or
    scored their completions unlike, and for runs of different rewards where no proxy is named.
    """
    kept = [_rl_config(given) for given in config.runs]
    first = kept[0] if kept else {}
    if config.proxy is None and len({str(each["reward"]) for each in kept}) > 1:
        listed = ", ".join(dict.fromkeys(str(each["reward"]) for each in kept))
        raise ConfigError(f"the runs differ in reward ({listed}); name one as proxy, or measure them apart")
    references = dict.fromkeys(str(_reference(each)) for each in kept)
    if config.model_name_or_path is None and len(references) > 1:
        raise ConfigError(
            f"the runs differ in the model that KL is measured from ({', '.join(references)}); KL and "
            "best-of-n need one reference, so measure them apart"
        )
    asked = {name: getattr(config, name) for name in OPTIONS}
    labels = [str(Path(given)) for given in config.runs]
    drawn = as_trained(dict(zip(labels, kept, strict=True)), asked)
    prompts = _prompts(config, first)
    different = len({prompt.text for prompt in prompts})
    sampling = Sampling(
        (config.seed,),
        config.num_generations or max(2, -(-SAMPLES // different)),
        drawn.max_completion_length,
        drawn.temperature,
        drawn.cut,
    )
    proxy = config.proxy or str(first["reward"])
    reference = config.model_name_or_path or str(_reference(first) or "seedling")
    sources = _sources(config.runs)
    return Plan(reference, sources, proxy, prompts, sampling, config.best_of_n, drawn.missing_end)


def _reference(kept: dict[str, Any]) -> Any:
    """The model that a run measured its KL from."""
    return kept.get("reference_model_name_or_path") or kept.get("model_name_or_path")


def _rl_config(given: str) -> dict[str, Any]:
    folder = Run.open(Path(given).expanduser())
    kept = folder.config
    if rl_options(kept) is not kept:
        raise RunError(
            f"{folder.folder} is a loop of rounds; name the rl folders of its rounds, "
            f"{folder.folder}/rounds/*/rl"
        )
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


def require_whole(sources: Sequence[Source], reference: Loaded) -> None:
    """Raises RunError for a damaged checkpoint, and where a run's KL was not measured from the reference."""
    for source in sources:
        checkpoint.verify(source.folder)
    for source in {each.run: each for each in sources}.values():
        _require_reference(source, checkpoint.load_state(source.folder), reference)


def load_source(source: Source, reference: Loaded) -> Loaded:
    """A checkpoint's policy, adapters on their base, where the reference is.

    Raises RunError for a damaged one, another reference than that of its run, or another base.
    """
    checkpoint.verify(source.folder)
    state = checkpoint.load_state(source.folder)
    _require_reference(source, state, reference)
    kept = Run.open(source.folder.parent.parent).config
    if kept.get("lora_r") is None:
        return fresh.load(str(source.folder), reference.model.device)
    rank = int(kept["lora_r"])
    base = load_model(kept["model_name_or_path"])
    if weights_sha256(base) != state.get("base_sha256"):
        raise RunError(
            f"{kept['model_name_or_path']} is not the model that the adapters of {source.folder} stand on: "
            "its weights have changed; bring the old ones back"
        )
    model = add_lora(base, rank, kept.get("lora_alpha") or 2.0 * rank, kept["seed"])
    with torch.no_grad():
        for name, parameter in trainable(model).items():
            parameter.copy_(state["adapters"][name])
    tokenizer = load_tokenizer(kept["model_name_or_path"])
    return fresh.prepared(source.name, model, tokenizer, reference.model.device)


def _require_reference(source: Source, state: Mapping[str, Any], reference: Loaded) -> None:
    if state.get("reference_sha256") != reference.sha256:
        raise RunError(
            f"{reference.name} is not the model that {source.folder.parent.parent} measured its KL from: its "
            "weights have changed, so the KL would be another one; give the old one as model_name_or_path"
        )
