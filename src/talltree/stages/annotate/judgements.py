"""Where the judgements of a folder are: in a study's store, or in the file that `import` made."""

from __future__ import annotations

from pathlib import Path

from talltree.annotation import database
from talltree.annotation.store import Store
from talltree.data.preferences import Judgement, read_preferences
from talltree.errors import RunError

IMPORTED = "preferences.jsonl"


def is_study(folder: Path) -> bool:
    """Whether `annotate new` made this folder."""
    return (folder / database.FILE).is_file()


def in_folder(folder: Path) -> list[Judgement]:
    """Every standing judgement of a study, or of an imported file. Raises RunError where there is neither."""
    if is_study(folder):
        with Store.open(folder) as store:
            return store.judgements()
    if (folder / IMPORTED).is_file():
        return read_preferences(folder / IMPORTED)
    raise RunError(
        f"{folder} holds neither a study nor {IMPORTED}; make it with talltree annotate new or import"
    )
