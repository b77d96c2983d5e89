"""Folders that are whole or absent: written aside, fsynced, renamed, and checked by SHA-256 when read.

Every writer here assumes that it is the only one in its folder; `Run` holds the lock that makes it so.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from talltree.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.json"
STATE_FORMAT = 1
_STEP_FOLDER = re.compile(r"step-(\d+)")
_LEFTOVER = re.compile(r"\.(.+)\.(partial|replaced)")
_DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.ENOTDIR, errno.ENOENT),  # a file where a folder should be; a folder removed meanwhile
)


# Writing whole or not at all


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns a full, read-only or failing disk inside the block into a RunError that names `path`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = _error_number(error)
        if number not in _DISK_ERRORS:
            raise
        free = shutil.disk_usage(_existing(path)).free / 2**20
        raise RunError(
            f"cannot write {path}: {os.strerror(number)} ({free:,.1f} MiB free there); what was saved "
            "before is intact: make room or permit writing, then continue with --resume"
        ) from error


def _error_number(error: OSError | SafetensorError) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"os error (\d+)", str(error))  # safetensors keeps the number only in its text
    return int(found[1]) if found else None


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


def write_file(path: Path, content: bytes) -> None:
    """Replaces one file atomically. Raises RunError for a full disk, with the old content intact."""
    with replacing(path) as partial:
        partial.write_bytes(content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a hidden path beside `path`; what is written there becomes `path` when the block succeeds."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with disk_errors(path):
            yield partial
            _sync(partial)
            os.replace(partial, path)
            _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def free_name(path: Path) -> Path:
    """`path`, or the first of NAME-2, NAME-3, ... (before the suffix) that does not exist yet."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free


def save_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Makes `folder` hold what `write` puts into the folder it is given, with a manifest, or not at all.

    An existing `folder` is replaced. Raises RunError for a full disk and whatever `write` raises; the aside
    folder is then gone and the old one intact. A kill leaves hidden folders that `clean_leftovers` settles.
    """
    partial, replaced = _partial(folder), _replaced(folder)
    try:
        with disk_errors(folder):
            _make_parent(folder)
            _settle(folder)
            partial.mkdir()
            write(partial)
            (partial / MANIFEST).write_bytes(_manifest_bytes(_digests(partial)))
            _sync_tree(partial)
            if folder.exists():
                os.rename(folder, replaced)
            os.rename(partial, folder)
            _sync(folder.parent)
    finally:
        _settle(folder)


def remove_folder(folder: Path) -> None:
    """Deletes a folder so that a kill in the middle never leaves half of it under its own name."""
    partial = _partial(folder)
    if partial.exists():
        shutil.rmtree(partial)
    os.rename(folder, partial)
    _sync(folder.parent)
    shutil.rmtree(partial)


def clean_leftovers(parent: Path) -> None:
    """Removes what killed writers left in `parent`; a folder caught while being replaced comes back."""
    if not parent.is_dir():
        return
    leftovers = [(match[1], path) for path in parent.iterdir() if (match := _LEFTOVER.fullmatch(path.name))]
    for name, path in leftovers:
        if path.is_file():
            path.unlink()
        else:
            _settle(parent / name)


def _make_parent(path: Path) -> None:
    if not path.parent.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _sync(path.parent.parent)


def _settle(folder: Path) -> None:
    partial, replaced = _partial(folder), _replaced(folder)
    if replaced.exists():
        if folder.exists():
            shutil.rmtree(replaced)
        else:
            os.rename(replaced, folder)
            _sync(folder.parent)
    if partial.exists():
        shutil.rmtree(partial)


def _partial(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.partial")


def _replaced(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.replaced")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            _sync(Path(parent, name))
        _sync(Path(parent))


# Checking


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digests(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        name: {"sha256": file_sha256(folder / name), "size": (folder / name).stat().st_size}
        for name in _file_names(folder)
    }


def _file_names(folder: Path) -> list[str]:
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return sorted(name for name in names if name != MANIFEST)


def _manifest_bytes(digests: Mapping[str, Mapping[str, Any]]) -> bytes:
    return (json.dumps({"files": digests}, indent=1, sort_keys=True) + "\n").encode()


def verify(folder: Path, may_differ: Collection[str] = ()) -> None:
    """Checks every file of a saved folder against its manifest, but for the names in `may_differ`.

    Raises RunError naming the first bad file.
    """
    if not folder.is_dir():
        raise RunError(f"{folder} does not exist or is not a folder")
    digests = _read_manifest(folder)
    present = set(_file_names(folder))
    for name, expected in digests.items():
        if name in may_differ:
            continue
        if name not in present:
            raise RunError(f"{folder} is damaged: {name} is missing")
        size = (folder / name).stat().st_size
        if size != expected["size"]:
            raise RunError(
                f"{folder} is damaged: {name} has {size} bytes where {MANIFEST} says {expected['size']}"
            )
        if file_sha256(folder / name) != expected["sha256"]:
            raise RunError(f"{folder} is damaged: {name} does not have the SHA-256 that {MANIFEST} gives")
    for name in sorted(present - digests.keys() - set(may_differ)):
        raise RunError(
            f"{folder} is damaged: {name} is not listed in {MANIFEST}; remove it if you put it there"
        )


def _read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    damaged = RunError(f"{folder} is damaged: {MANIFEST} is not as it was written")
    try:
        content = (folder / MANIFEST).read_bytes()
        digests = json.loads(content)["files"]
        well_formed = all(entry.keys() == {"sha256", "size"} for entry in digests.values())
    except FileNotFoundError as error:
        raise RunError(f"{folder} is damaged: {MANIFEST} is missing") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged from error
    # A changed blank would still parse; only the exact bytes that were written are accepted.
    if not well_formed or content != _manifest_bytes(digests):
        raise damaged
    return digests


def step_folders(checkpoints: Path) -> list[tuple[int, Path]]:
    """The step-N folders of a checkpoints folder, oldest first, unchecked."""
    if not checkpoints.is_dir():
        return []
    found = ((_STEP_FOLDER.fullmatch(path.name), path) for path in checkpoints.iterdir() if path.is_dir())
    return sorted((int(match[1]), path) for match, path in found if match)


def latest_good(checkpoints: Path, say: Callable[[str], None]) -> tuple[int, Path]:
    """Newest step-N folder that passes `verify`, as (N, folder); each damaged one is named through `say`.

    Raises RunError if there is none.
    """
    damaged = 0
    for step, folder in reversed(step_folders(checkpoints)):
        try:
            verify(folder)
        except RunError as error:
            say(f"{error}; looking for an earlier checkpoint")
            damaged += 1
            continue
        if damaged:
            say(f"using {folder}, the newest good checkpoint")
        return step, folder
    which = (
        f"all {damaged} checkpoints in {checkpoints} are damaged"
        if damaged
        else f"no checkpoint in {checkpoints}"
    )
    raise RunError(f"{which}; start again with another output_dir")


# Training state


def save_state(folder: Path, tree: Any) -> None:
    """Writes nested dict, list, tuple, tensor, int, float, str, bool, None to state.safetensors + state.json.

    Bit for bit, dict order and int keys included; a tensor that stands in several places is stored once. A
    dict of any class comes back as dict, a tensor as a contiguous CPU tensor without gradient. Raises
    TypeError, naming the place, for anything else: there is no pickle to fall back on.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    structure = _encode(tree, "state", tensors, {})
    save_file(tensors, folder / "state.safetensors")
    text = json.dumps({"format": STATE_FORMAT, "state": structure}, allow_nan=False)
    (folder / "state.json").write_text(text + "\n", encoding="utf-8")


def load_state(folder: Path) -> Any:
    """Reads what `save_state` wrote. Raises RunError if a file is missing or of a later format."""
    from safetensors.torch import load_file

    try:
        content = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "state.safetensors")
    except FileNotFoundError as error:
        raise RunError(f"{folder} holds no training state: {error.filename or error} is missing") from error
    if content["format"] != STATE_FORMAT:
        raise RunError(
            f"{folder} has state format {content['format']}; this version reads format {STATE_FORMAT}"
        )
    return _decode(content["state"], tensors)


def _encode(node: Any, place: str, tensors: dict[str, Tensor], seen: dict[tuple[Any, ...], str]) -> Any:
    """JSON for one node: null, bool, int and str as they are, everything else as {kind: content}."""
    import torch

    if node is None or type(node) in (bool, int, str):
        return node
    if type(node) is float:
        return {"float": node.hex()}
    if isinstance(node, torch.Tensor):
        return {"tensor": _store(node, place, tensors, seen)}
    if type(node) in (list, tuple):
        items = [_encode(item, f"{place}/{index}", tensors, seen) for index, item in enumerate(node)]
        return {type(node).__name__: items}
    if isinstance(node, dict):
        for key in node:
            if type(key) not in (str, int):
                raise TypeError(
                    f"{place} has a key of type {type(key).__name__}; only str and int can be saved"
                )
        return {"dict": [[key, _encode(item, f"{place}/{key}", tensors, seen)] for key, item in node.items()]}
    raise TypeError(f"{place} is a {type(node).__name__}, which a checkpoint cannot hold")


def _store(tensor: Tensor, place: str, tensors: dict[str, Tensor], seen: dict[tuple[Any, ...], str]) -> str:
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized:
        raise TypeError(f"{place} is a {tensor.layout} tensor, which a checkpoint cannot hold")
    same = (
        tensor.device,
        tensor.data_ptr(),
        tensor.dtype,
        tensor.shape,
        tensor.stride(),
        tensor.is_conj(),
        tensor.is_neg(),
    )
    if tensor.numel() and same in seen:
        return seen[same]
    name = place
    while name in tensors:  # the keys 0 and "0" of one dict lead to the same place
        name += "'"
    # safetensors refuses tensors that overlap in memory: whatever may is copied. The rest is written from
    # where it lies, because the optimiser's moments are twice the size of the model.
    storage = tensor.untyped_storage()
    taken = {held.untyped_storage().data_ptr() for held in tensors.values()}
    plain = (
        tensor.device.type == "cpu" and tensor.is_contiguous() and not (tensor.is_conj() or tensor.is_neg())
    )
    if plain and storage.nbytes() == tensor.nbytes and storage.data_ptr() not in taken:
        tensors[name] = tensor.detach()
    else:
        tensors[name] = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
    seen[same] = name
    return name


def _decode(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(node, dict):
        return node
    ((kind, content),) = node.items()
    if kind == "float":
        return float.fromhex(content)
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _decode(item, tensors) for key, item in content}
    items = [_decode(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items
