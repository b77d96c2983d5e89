"""Actions `export` and `import`: judgements as JSONL, CSV or prompt/chosen/rejected pairs, and back."""

from __future__ import annotations

from pathlib import Path

from talltree.annotation.exchange import pair_rows, read_judgements, write_csv, write_pairs
from talltree.data.preferences import Judgement, write_preferences
from talltree.errors import ConfigError, RunError
from talltree.stages.annotate.config import Config
from talltree.stages.annotate.judgements import IMPORTED, in_folder, is_study
from talltree.stages.annotate.options import Format

NAMES: dict[Format, str] = {"jsonl": IMPORTED, "csv": "preferences.csv", "pairs": "preferences-pairs.jsonl"}


def run(config: Config) -> None:
    """Exports the folder's judgements, or imports a file's into a new folder, and says how many."""
    folder = Path(config.folder).expanduser()
    if config.action == "import":
        _import(folder, config)
    else:
        _export(folder, config)


def _export(folder: Path, config: Config) -> None:
    options = config.exchange
    judgements = in_folder(folder)
    chosen: Format = options.format or ("csv" if (options.file or "").endswith(".csv") else "jsonl")
    target = folder / NAMES[chosen] if options.file is None else Path(options.file).expanduser()
    if options.file is not None and target.exists():
        raise ConfigError(f"exchange.file {target} exists and is not overwritten; name another file")
    if not is_study(folder) and target == folder / IMPORTED:
        raise ConfigError(f"{target} is the imported file itself; name another with --exchange.file")
    if not target.parent.is_dir():
        raise ConfigError(f"exchange.file {target}: folder {target.parent} does not exist; create it first")
    if chosen == "pairs":
        found = pair_rows(judgements, options.margins)
        write_pairs(target, found.rows)
        margins = "with" if found.with_margin else "without"
        print(
            f"{target}: {len(found.rows):,} pairs {margins} margins from {len(judgements):,} judgements, of "
            f"which {found.undecided:,} settle no pair and are left out"
        )
        return
    if chosen == "csv":
        write_csv(target, judgements)
    else:
        write_preferences(target, judgements)
    print(f"{target}: {_words(judgements)}")


def _import(folder: Path, config: Config) -> None:
    options = config.exchange
    if options.file is None:
        raise ConfigError("import needs --exchange.file, a .jsonl or .csv file of judgements")
    if options.format == "csv" and not options.file.endswith(".csv"):
        raise ConfigError(f"exchange.format csv, but {options.file} does not end with .csv; rename the file")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} exists and is not empty, and is not overwritten; import into a new folder")
    judgements = read_judgements(options.file, options.ignore)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make {folder}: {error.strerror}") from None
    write_preferences(folder / IMPORTED, judgements)
    print(f"{folder / IMPORTED}: {_words(judgements)}\nnext: talltree annotate stats {folder}")


def _words(judgements: list[Judgement]) -> str:
    ties = sum(judgement.tie for judgement in judgements)
    names = {judgement.annotator for judgement in judgements} - {""}
    return f"{len(judgements):,} judgements (named annotators: {len(names):,}, ties: {ties:,})"
