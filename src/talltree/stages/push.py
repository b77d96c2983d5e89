"""Uploads a saved model and its card with the hub's own library; nothing else of a run ever leaves."""

from __future__ import annotations

import fnmatch
from dataclasses import MISSING, dataclass
from pathlib import Path

from talltree import checkpoint
from talltree.config import option
from talltree.errors import ConfigError, HubError, RunError
from talltree.models.reward_format import HEADS
from talltree.run import CONFIG

POSITIONAL = "folder"

CARD = "README.md"
WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors")
UPLOADED = (
    *(*WEIGHTS, "model.safetensors.index.json", HEADS, CARD, "LICENSE*"),
    *("config.json", "generation_config.json", "chat_template.jinja"),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model"),
)
"""A model in the hub's layout. Whatever else lies in its folder stays here."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Upload a saved model with its card to the hub, or to another one that HF_ENDPOINT names."""

    folder: str = option(
        MISSING, "run folder, of which final/ is uploaded, or a model folder with a README.md"
    )
    repo_id: str = option(MISSING, "repository on the hub, NAME or OWNER/NAME; made where it is missing")
    private: bool = option(False, "make the repository private")
    revision: str | None = option(None, "branch to upload to, made where it is missing; null: the main one")

    def check(self) -> None:
        """Raises ConfigError for a name that no repository can have."""
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        try:
            validate_repo_id(self.repo_id)
        except HFValidationError as error:
            raise ConfigError(f"repo_id: {error}") from None


def run(config: Config) -> None:
    """Uploads and prints the address. Raises RunError for the folder, HubError for the hub."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HTTPError

    folder = model_folder(Path(config.folder).expanduser())
    names = uploaded(folder)
    api = HfApi()
    if get_token() is None:
        raise HubError(f"there is no token for {api.endpoint}: run `hf auth login`, or set HF_TOKEN")
    try:
        repo = api.create_repo(config.repo_id, private=config.private or None, exist_ok=True).repo_id
        if config.private and not api.repo_info(repo).private:
            raise HubError(
                f"{repo} exists and is public, and --private does not change that; choose another "
                "repo_id, or make it private on the hub first"
            )
        if config.revision is not None:
            api.create_branch(repo, branch=config.revision, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            revision=config.revision,
            allow_patterns=names,
            commit_message="Upload by talltree push",
        )
    except (HTTPError, OSError, ValueError) as error:
        raise HubError(_refusal(config.repo_id, api.endpoint, error)) from error
    print(f"uploaded {', '.join(names)}\n{done.commit_url}")


def model_folder(folder: Path) -> Path:
    """The folder to upload: final/ of a run, or the folder itself.

    Raises RunError where it is missing, has no weights or no card, or is damaged; its card may be edited.
    """
    if not folder.is_dir():
        raise RunError(f"{folder} is not a folder; name a run folder, or a model folder")
    if (folder / CONFIG).is_file():
        if not (folder / "final").is_dir():
            raise RunError(f"{folder} has no final/: the run has not ended; finish it with --resume {folder}")
        folder = folder / "final"
    if not _matching(folder, WEIGHTS):
        raise RunError(f"{folder} has no model.safetensors; name a run folder, or a model folder")
    if not (folder / CARD).is_file():
        raise RunError(
            f"{folder} has no {CARD}, the model card; final/ of a run has one, or write it: what the model "
            "is, its data and its licence"
        )
    if (folder / checkpoint.MANIFEST).is_file():
        checkpoint.verify(folder, may_differ=(CARD,))
    return folder


def uploaded(folder: Path) -> list[str]:
    """The files in a model folder that are uploaded, those of further members of an ensemble too."""
    members = sorted(path for path in folder.glob("member-[0-9]*") if path.is_dir())
    further = [f"{path.name}/{name}" for path in members for name in _matching(path, UPLOADED)]
    return _matching(folder, UPLOADED) + further


def _matching(folder: Path, patterns: tuple[str, ...]) -> list[str]:
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    return [name for name in names if any(fnmatch.fnmatchcase(name, each) for each in patterns)]


def _refusal(repo_id: str, endpoint: str, error: Exception) -> str:
    said = " ".join((getattr(error, "server_message", None) or str(error)).split())[:300]
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is None and not isinstance(error, ValueError):
        return f"{endpoint} cannot be reached ({said}); check the network, HF_ENDPOINT and HF_HUB_OFFLINE"
    if status == 401:
        return f"{endpoint} does not accept the token ({said}); run `hf auth login`, or set HF_TOKEN"
    return (
        f"{endpoint} refuses the upload to {repo_id} ({said}); check its owner and your right to write there"
    )
