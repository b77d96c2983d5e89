"""The model card: README.md beside the weights, from what the run folder and the model's own files hold.

A card is published, so a folder of the machine never appears in it: of a path only the last part does. Nor
does anything that a clock measured: the same run gives the same card.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

CARD = "README.md"
NOT_RECIPE = ("resume", "max_minutes", "output_dir")
"""Options that say where and how long, not what."""
TEXTS = ("prompt", "completion", "separator", "sample_prompts", "data_note")
"""Options whose values are texts and never paths, whatever they begin with."""
FILES_SHOWN = 20

_PATH = re.compile(r"(file:)?(/|~|\.\.?/|[A-Za-z]:\\)")
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_SIZES = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "width": ("hidden_size", "n_embd"),
    "heads": ("num_attention_heads", "n_head", "num_heads"),
    "context": ("max_position_embeddings", "n_positions"),
    "vocabulary": ("vocab_size",),
}


class Facts(NamedTuple):
    """What the stages tell apart: a title, what the model is, tags, and the sections on data and results."""

    title: str
    what: str
    tags: tuple[str, ...]
    data: str
    results: str


def write_card(
    folder: Path, config: Mapping[str, Any], summary: Mapping[str, Any], machine: Mapping[str, Any]
) -> None:
    """Writes the card into a folder that holds the saved model; see `model_card`."""
    text = model_card(config, summary, machine, sizes(folder))
    (folder / CARD).write_text(text, encoding="utf-8")


def model_card(
    config: Mapping[str, Any],
    summary: Mapping[str, Any],
    machine: Mapping[str, Any],
    found: Mapping[str, Any] | None = None,
) -> str:
    """The card of a pretrain, sft, reward or rl run as Markdown, with the hub's metadata in front.

    config, summary and machine are what a run folder holds in config.yaml, summary.json and
    environment.json; found: what `sizes` gives. Raises KeyError for another stage.
    """
    recipe = {key: without_folders(value, key) for key, value in config.items() if key not in NOT_RECIPE}
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=100)
    stage = summary["stage"]
    facts = STAGES[stage](recipe, summary, machine)
    about = {
        "license": config["licence"],
        "library_name": "transformers",
        "pipeline_tag": "text-classification" if stage == "reward" else "text-generation",
        "tags": ["talltree", stage, *facts.tags],
    }
    base = config.get("model_name_or_path")
    if base is not None and is_hub_name(base):
        about["base_model"] = base
    sections = [
        f"---\n{yaml.safe_dump(about, sort_keys=False, allow_unicode=True)}---",
        f"# {facts.title}\n\n{facts.what}",
        _table(*zip(*(found or {"parameters": summary["parameters"]}).items(), strict=True)),
        f"## Data\n{config['data_note'] or 'Not described.'}\n\n{facts.data}",
        f"## Results\n{facts.results}",
        f"## Config\nSHA-256 `{hashlib.sha256(text.encode()).hexdigest()}` of\n```yaml\n{text}```",
        _repeat(stage, machine),
        f"## Licence\n{config['licence']}",
    ]
    return "\n\n".join(sections) + "\n"


def sizes(folder: Path) -> dict[str, Any]:
    """Type, dimensions, stored parameters and their precision, from config.json and the weights' headers."""
    from safetensors import safe_open

    shape = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    parameters, dtypes = 0, set()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118  (it is no mapping)
                stored = file.get_slice(name)
                count = 1
                for side in stored.get_shape():
                    count *= side
                parameters += count
                dtypes.add(stored.get_dtype())
    named = {
        what: next((shape[key] for key in keys if shape.get(key) is not None), "not stated")
        for what, keys in _SIZES.items()
    }
    stored_as = ", ".join(sorted(dtypes))
    return {"type": shape["model_type"], "parameters": parameters, **named, "stored as": stored_as}


def without_folders(value: Any, key: str = "") -> Any:
    """The value of an option with every path that leads out of the working folder cut to its last part."""
    if isinstance(value, Mapping):
        return {name: without_folders(each, name) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(each, key) for each in value]
    if isinstance(value, str) and key not in TEXTS and _PATH.match(value):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return value


def is_hub_name(name: str) -> bool:
    """Whether a model's name is one of the hub's, not a folder here nor the package's own."""
    return name != "seedling" and bool(_HUB_NAME.fullmatch(name)) and not Path(name).exists()


# The stages


def _pretrain(config: Mapping[str, Any], summary: Mapping[str, Any], machine: Mapping[str, Any]) -> Facts:
    corpus, validation, final = summary["corpus"], summary["validation"], summary["final"]
    stored = final["dtype"]
    what = (
        "A small language model, trained from scratch by `talltree pretrain`: "
        f"{summary['steps']:,} updates of {config['batch_size']} rows, {summary['epochs']:.2f} epochs of "
        f"{summary['train_tokens']:,} tokens."
    )
    losses = _table(
        ("held out", "float32, as trained", f"{stored}, as stored"),
        ("nats per token", f"{validation['loss']:.4f}", f"{final['loss']:.4f}"),
        ("bits per byte", f"{validation['bits_per_byte']:.4f}", f"{final['bits_per_byte']:.4f}"),
    )
    read = "Each held-out document was read from its own start; its end token counts in both figures."
    tokens = {"train": summary["train_tokens"], "validation": validation["tokens"]}
    title = f"A language model of {summary['parameters']:,} parameters"
    return Facts(title, what, (), _corpus(corpus, tokens), f"{losses}\n\n{read}")


def _sft(config: Mapping[str, Any], summary: Mapping[str, Any], machine: Mapping[str, Any]) -> Facts:
    corpus, data = summary["corpus"], summary["data"]
    base = config["model_name_or_path"]
    trained = (
        "all weights" if config["lora_r"] is None else f"LoRA adapters of rank {config['lora_r']}, merged"
    )
    what = (
        f"`{base}` (weights SHA-256 `{summary['base_sha256']}`), fine-tuned by `talltree sft`: {trained}, "
        f"loss on the {summary['loss_on']}; {summary['steps']:,} updates, {summary['epochs']:.2f} epochs, "
        f"{summary['learned_tokens']:,} learned tokens. These weights are those after update "
        f"{summary['final_step']:,}, of the lowest held-out loss."
    )
    sides = {"train": data["train"], "validation": data["held_out"]}
    examples = _table(
        ("examples", "number", "tokens", "of them learned"),
        *(
            (name, f"{side['examples']:,}", f"{side['tokens']:,}", f"{side['learned_tokens']:,}")
            for name, side in sides.items()
        ),
    )
    left_out = (
        f"Of the examples, {data['too_long']:,} were too long, {data['undivided']:,} could not be divided "
        f"into prompt and completion, and {data['shared_prompts']:,} had a held-out prompt: left out."
    )
    losses = _table(
        ("held-out loss", "nats per token"),
        ("before", _interval(summary["before"]["loss"])),
        ("after", _interval(summary["after"]["loss"])),
        ("change", _interval(summary["change"])),
    )
    over = f"95% intervals over {summary['after']['examples']:,} held-out examples; the change is paired."
    return Facts(
        f"{_last(base)}, fine-tuned",
        what,
        (),
        f"{_corpus(corpus, {})}\n\n{examples}\n\n{left_out}",
        f"{losses}\n\n{over}",
    )


def _rl(config: Mapping[str, Any], summary: Mapping[str, Any], machine: Mapping[str, Any]) -> Facts:
    base, reward, algorithm = config["model_name_or_path"], config["reward"], config["algorithm"]
    origin = f" (weights SHA-256 `{summary['base_sha256']}`)" if "base_sha256" in summary else ""
    what = (
        f"`{base}`{origin}, trained by `talltree rl` with {algorithm} on the reward `{reward}`: "
        f"{summary['steps']:,} steps of {config['batch_size']} completions, KL coefficient "
        f"{summary['kl_coef']:.4g} per nat; ended by: {summary['stop_reason']}. These weights are those "
        f"after step {summary['final_step']:,}."
    )
    prompts = (
        f"The prompt `{config['prompt']}`."
        if config["prompts"] is None
        else f"Prompts: `{config['prompts']}`."
    )
    before, after = summary["before"], summary["after"]
    rows: list[tuple[str, str, str]] = [
        (name + unit, _interval(before[name]), _interval(after[name]))
        for name, unit in (("reward", ""), ("kl", ", nats a sequence"), ("length", ", tokens"))
    ]
    shares = ("distinct_1", "distinct_2", "unique")
    rows += [(name, f"{before[name]:.3f}", f"{after[name]:.3f}") for name in shares]
    measured = (
        f"{after['samples']:,} fresh samples each, on {summary['evaluated_on']}; 95% intervals over samples."
    )
    return Facts(
        f"{_last(base)}, {algorithm} on {reward}",
        what,
        (algorithm, "reinforcement-learning"),
        "\n".join([prompts, *_hashes(machine["data_sha256"])]),
        f"{_table(('', 'before', 'after'), *rows)}\n\n{measured}",
    )


def _reward(config: Mapping[str, Any], summary: Mapping[str, Any], machine: Mapping[str, Any]) -> Facts:
    base, data, after = config["model_name_or_path"], summary["data"], summary["after"]
    ensemble = config["ensemble"]
    heads = (
        "one head"
        if ensemble["size"] == 1
        else f"{ensemble['size']} heads ({ensemble['body']} body), combined by {ensemble['combine']}"
    )
    end = "an end token after it" if config["eos"] == "append" else "no end token added"
    what = (
        f"A reward model: `{base}` (weights SHA-256 `{summary['base_sha256']}`) with {heads}, trained by "
        f"`talltree reward` with the loss {summary['loss']}; {summary['steps']:,} updates, "
        f"{summary['epochs']:.2f} epochs. It reads prompt + completion, {end}, at the last real token; its "
        f"rewards have mean 0 and deviation 1 over {summary['reference']['samples']:,} reference samples "
        f"({summary['reference']['source']}). `talltree rl --reward FOLDER` uses it. The logit of "
        "`AutoModelForSequenceClassification` is that of the first head, before gain and bias; these stand "
        "in config.json under `talltree_reward`."
    )
    sides = _table(
        ("judgements", "number", "pairs", "texts", "annotators"),
        *(
            (name, *(f"{data[key][what_]:,}" for what_ in ("comparisons", "pairs", "texts", "annotators")))
            for name, key in (("train", "train"), ("held out", "held_out"))
        ),
    )
    left_out = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in data["left_out"].items())
    split = f"Split by: {data['split']['rule']}. Left out: {left_out}."
    agreed = after["agreement"]["mean"]
    rows = [
        ("accuracy before", _interval(summary["before"]["accuracy"])),
        ("accuracy", _interval(after["accuracy"])),
        (f"accuracy of preferring the {after['length']['baseline']} text",
         f"{after['length']['baseline_accuracy']:.4f}"),
        ("annotators' agreement with each other",
         "no pair judged twice" if agreed is None else f"{agreed:.4f}"),
        ("expected calibration error", f"{after['calibration']['ece']:.4f}"),
        *((f"original above {p['name'].replace('_', ' ')}", _interval(p)) for p in summary["probes"]),
    ]  # fmt: skip
    warnings = "".join(f"\n\nWarning: {each}." for each in summary["warnings"])
    return Facts(
        f"{_last(base)}, reward model",
        what,
        ("reward-model",),
        "\n\n".join([sides, split, "\n".join(_hashes(machine["data_sha256"]))]),
        f"{_table(('held out', 'share'), *rows)}\n\n95% intervals: bootstrap over clusters of judgements "
        f"that share texts; Wilson's for probes.{warnings}",
    )


STAGES: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]], Facts]] = {
    "pretrain": _pretrain,
    "sft": _sft,
    "rl": _rl,
    "reward": _reward,
}


# Pieces


def _corpus(corpus: Mapping[str, Any], tokens: Mapping[str, int]) -> str:
    """What corpus.json says; tokens by split where they are counted."""
    splits = [name for name in ("train", "validation", "test") if corpus.get(f"{name}_documents")]
    counts = _table(
        ("split", "documents", "words", "bytes", "tokens"),
        *(
            (name, *(f"{corpus[f'{name}_{what}']:,}" for what in ("documents", "words", "bytes")))
            + (f"{tokens[name]:,}" if name in tokens else "",)
            for name in splits
        ),
    )
    sources = _table(
        ("source", "documents", "words", "tokens", "share of train", "SHA-256 of its documents"),
        *(
            (
                row["name"],
                f"{sum(split['documents'] for split in row['splits'].values()):,}",
                f"{sum(split['words'] for split in row['splits'].values()):,}",
                f"{row['tokens']:,}" if "tokens" in row else "",
                f"{row['share_found']:.1%}",
                f"`{row['content_sha256']}`",
            )
            for row in corpus["sources"]
        ),
    )
    left_out = (
        f"Left out: {corpus['duplicates_dropped']:,} exact duplicates, {corpus['empty_dropped']:,} empty "
        f"documents, {corpus['overlaps_dropped']:,} that stand in a later split too. Split by: "
        f"{corpus['rules']['split']}."
    )
    near = corpus.get("near_duplicates", {})
    pairs = ", ".join(f"{name} {each['pairs']:,} pairs" for name, each in near.get("pairs", {}).items())
    if near:
        left_out += (
            f" Near-duplicates across splits (similarity {near['threshold']} and above): {pairs or 'none'}."
        )
    return "\n\n".join([counts, sources, left_out, "\n".join(_hashes(corpus["sha256"]))])


def _hashes(sha256: Mapping[str, str]) -> list[str]:
    lines = [f"- `{name}`: SHA-256 `{digest}`" for name, digest in sha256.items()]
    more = len(lines) - FILES_SHOWN
    return lines if more <= 0 else [*lines[:FILES_SHOWN], f"- and {more:,} more files"]


def _repeat(stage: str, machine: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    commit = machine["git"]["talltree"]
    where = ", ".join([machine["processor"], f"{machine['torch_threads']} threads", *machine["gpus"]])
    return (
        "## Repeat it\n"
        "Save the config as config.yaml, with the paths of your own copies where it names a file or folder "
        f"by its last part, and run `talltree {stage} --config config.yaml --output_dir runs/again`.\n\n"
        f"Python {machine['python']}, {versions}"
        + (f"; talltree at commit {commit}" if commit else "")
        + f". Made on {where}; other threads, processors and versions change the last bits."
    )


def _table(head: Sequence[Any], *rows: Iterable[Any]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: Any) -> str:
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return " ".join(text.split()).replace("|", "\\|")


def _interval(value: Mapping[str, float | None]) -> str:
    if value["mean"] is None:
        return "not finite"
    spread = "" if value["low"] is None else f" ({value['low']:.4f} to {value['high']:.4f})"
    return f"{value['mean']:.4f}{spread}"


def _last(name: str) -> str:
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1]
