"""A small checkpoint folder for tests."""

import os
import sys
from pathlib import Path

ENVIRONMENT = {**os.environ, "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}


def write_files(contents: dict[str, bytes]):
    def write(folder: Path) -> None:
        for name, content in contents.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

    return write


def contents_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


FILES = {
    "model.safetensors": bytes(range(256)) * 8,
    "config.json": b'{"a": 1}\n',
    "sub/empty": b"",
    "sub/vocab": b"x y",
}
