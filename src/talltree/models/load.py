"""Loading and saving causal language models and tokenizers in the hub's layout, with errors to act on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from talltree.errors import ConfigError, ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SEEDLING = Path(__file__).parent.parent / "seedling"
"""The story model that comes with the package; `seedling` names it wherever a model is asked for."""


def resolve(name_or_path: str, marks: Sequence[str] = ("config.json",)) -> str:
    """The folder or hub name to load from: `seedling`, a local folder with one of `marks`, or a hub name.

    Raises ModelError for a path that is no such folder.
    """
    if name_or_path == "seedling":
        return str(SEEDLING)
    looks_local = name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        if not any((path / mark).is_file() for mark in marks):
            raise ModelError(
                f"{name_or_path} has no {' or '.join(marks)}, so it is not a model folder in the hub's layout"
            )
        return str(path)
    if path.exists():
        raise ModelError(f"{name_or_path} is a file; give the model folder that holds its config.json")
    if looks_local:
        raise ModelError(
            f"model folder {name_or_path} does not exist; check the path, or give a hub name such as a/b"
        )
    return name_or_path


def load_model(name_or_path: str, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """A causal LM in eval mode (dropout off), float32 unless dtype says otherwise; safetensors only.

    Raises ModelError where it is missing, unreadable, damaged, or not a causal LM.
    """
    loaded = load_with("AutoModelForCausalLM", name_or_path, dtype)
    refuse_missing(name_or_path, loaded.missing)
    refuse_mismatched(name_or_path, loaded.mismatched)
    return loaded.model


class Loaded(NamedTuple):
    """A model in eval mode, the weights that were not stored, and (name, stored, wanted shape) of misfits."""

    model: PreTrainedModel
    missing: list[str]
    mismatched: list[tuple[str, Any, Any]]


def load_with(auto_class: str, name_or_path: str, dtype: torch.dtype | None = None, **options: Any) -> Loaded:
    """A model through one of the library's Auto classes; what is missing is drawn at random and named.

    Raises ModelError where it is not there, unreadable, damaged, or no model of that class.
    """
    import torch
    import transformers
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    source = resolve(name_or_path)
    _check_not_cut(Path(source))
    load: Any = getattr(transformers, auto_class).from_pretrained
    try:
        with _quiet():
            model, info = load(
                source,
                dtype=dtype or torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # the caller refuses them in one line
                **options,
            )
    except (
        *(OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError),
        *(SafetensorError, StrictDataclassError),
    ) as error:
        raise ModelError(_cannot_load("model", name_or_path, source, error)) from error
    fuse_gelu(model)
    return Loaded(model.eval(), sorted(info["missing_keys"]), sorted(info["mismatched_keys"]))


def fuse_gelu(model: PreTrainedModel) -> None:
    """Puts torch's tanh GELU in place of the library's `gelu_new`, which GPT-2 and GPT-Neo have.

    The same function in one call instead of eight, for which autograd keeps one tensor instead of four. The
    config is left as it is.
    """
    from torch import nn
    from transformers.activations import NewGELUActivation

    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is NewGELUActivation:
                setattr(module, name, nn.GELU(approximate="tanh"))


def refuse_missing(name_or_path: str, missing: Sequence[str]) -> None:
    """Raises ModelError for weights that a model's files lack."""
    if missing:
        raise ModelError(
            f"model {name_or_path} lacks {len(missing)} of its weights ({missing[0]}, ...), "
            "which would start at random; fetch or save it again"
        )


def refuse_mismatched(name_or_path: str, mismatched: Sequence[tuple[str, Any, Any]]) -> None:
    """Raises ModelError for weights of another shape than the config's."""
    if mismatched:
        name, stored, wanted = mismatched[0]
        raise ModelError(
            f"model {name_or_path}: {len(mismatched)} weights differ in shape from its config.json "
            f"({name} is {tuple(stored)}, the config asks for {tuple(wanted)})"
        )


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model, or alone in a folder, as the stage `tokenizer` leaves one.

    Raises ModelError where it is missing or unreadable.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoTokenizer

    source = resolve(name_or_path, ("config.json", "tokenizer.json"))
    _check_not_cut(Path(source))
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StrictDataclassError) as error:
        raise ModelError(_cannot_load("tokenizer", name_or_path, source, error)) from error


def compute_device(asked: str, dtype: str = "float32") -> torch.device:
    """Where to compute: `auto` is cuda where there is one.

    Raises ConfigError for a GPU that is not there, and for bfloat16 without one.
    """
    import torch

    found = "cuda" if torch.cuda.is_available() else "cpu"
    device = found if asked == "auto" else asked
    if device == "cuda" and found == "cpu":
        raise ConfigError("device cuda is asked for, but torch sees no GPU here; use device auto or cpu")
    if dtype == "bfloat16" and device == "cpu":
        raise ConfigError("dtype bfloat16 is for GPUs; use float32 on this CPU")
    return torch.device(device)


def weights_sha256(model: PreTrainedModel) -> str:
    """SHA-256 of names and bytes of the weights, adapters left out; the same on every device."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if "lora_" not in name:
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that end a text: the generation config's, else the model's, else the tokenizer's EOS.

    Raises ModelError if there is none, or if none lies in the vocabulary.
    """
    sources = (model.generation_config, model.config, tokenizer)
    for ids in (getattr(source, "eos_token_id", None) for source in sources):
        if ids is not None and ids != []:
            found = tuple(sorted({ids} if isinstance(ids, int) else set(ids)))
            if all(0 <= token < model.config.vocab_size for token in found):
                return found
            raise ModelError(
                f"eos_token_id {ids} of model {model.config._name_or_path} lies outside its vocabulary of "
                f"{model.config.vocab_size} tokens; correct it in generation_config.json or config.json"
            )
    raise ModelError(
        f"model {model.config._name_or_path} has no end-of-sequence token; "
        "set eos_token_id in its config.json"
    )


def context_length(model: PreTrainedModel) -> int:
    """The most tokens the model can read, prompt and completion together."""
    config = model.config
    return int(getattr(config, "max_position_embeddings", 0) or getattr(config, "n_positions", 1 << 30))


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text as a prompt: with the BOS that the tokenizer adds, without a final EOS."""
    encoded = []
    for text in texts:
        ids = list(tokenizer(text)["input_ids"])
        if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id and ids[0] != tokenizer.eos_token_id:
            ids = ids[:-1]
        encoded.append(ids)
    return encoded


def save_model(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write weights, config and tokenizer so that AutoModelForCausalLM loads it; adapters are merged."""
    if hasattr(model, "merge_adapter"):
        from copy import deepcopy

        adapted: Any = deepcopy(model)
        model = adapted.merge_and_unload()
    model.save_pretrained(folder, safe_serialization=True)
    save_tokenizer(folder, tokenizer)


def save_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write tokenizer.json and tokenizer_config.json under a class name that transformers 4 and 5 both know.

    Version 5 writes the class as TokenizersBackend, which version 4 does not have.
    """
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("tokenizer_class") == "TokenizersBackend":
        content["tokenizer_class"] = "PreTrainedTokenizerFast"
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar and no table of warnings: what is wrong is said in one line."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _check_not_cut(folder: Path) -> None:
    """A file cut off in the middle would otherwise be a parser's message without the file's name.

    A damaged generation_config.json would even be passed over in silence, and with it the stop tokens.
    """
    for path in sorted(folder.glob("*.json")):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelError(f"{path} is not valid JSON ({error}); fetch or save the model again") from error


def _cannot_load(what: str, name: str, source: str, error: BaseException) -> str:
    # Such an error's text is a bare name or an internal detail: its kind helps.
    kind = f"{type(error).__name__} " if isinstance(error, (KeyError, TypeError, AttributeError)) else ""
    first = kind + " ".join(str(error).split())
    if Path(source).is_dir():
        return f"cannot load the {what} in {name}: {first[:200]}"
    return (
        f"cannot load {what} {name}: no such local folder, and the hub does not answer with it "
        f"({first[:120]}); check the name and the network, or give a local folder"
    )
