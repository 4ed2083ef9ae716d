"""Files that are whole or absent: atomic writes, digests, archives of one folder's state."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from compress.errors import NoSpace, Tampered


def link(source: str, target: str) -> None:
    """Let a file stand at a second place too: the same bytes on disk where the system can, else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def sha256(path: Path) -> str:
    """Return the hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(value: Any) -> str:
    """Return the hex digest of anything that JSON can write, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def digests(folder: Path, without: frozenset[str] = frozenset()) -> dict[str, str]:
    """Return the digest of every file below a folder, by relative posix path, sorted."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    return {n: sha256(folder / n) for n in (p.relative_to(folder).as_posix() for p in paths) if n not in without}


def check(folder: Path, expected: Mapping[str, str], card: str) -> None:
    """Raise `Tampered` unless every expected file is there with its digest, which the file `card` holds."""
    for name, digest in expected.items():
        path = folder / name
        if not path.is_file() or sha256(path) != digest:
            what = "was changed" if path.is_file() else "is missing"
            raise Tampered(
                f"{path}: {what} after it was written (its digest differs from {card}); delete {folder} to make it anew"
            )


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file to write that becomes `path` when the block ends well: a reader sees the old content or the new."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.new")
    with disk_errors(path):
        try:
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON atomically, keys in the order given."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `path` when the block ends well, and vanishes when it does not.

    An older folder at `path` is replaced.
    """
    partial = path.with_name(f"{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with disk_errors(path):
        partial.mkdir(parents=True)
        try:
            yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        if path.exists():
            shutil.rmtree(path)
        partial.replace(path)


@contextlib.contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Turn 'no space left on device' into a fault that says what to do."""
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left on device" in str(error):  # safetensors has an error of its own, without errno
            raise NoSpace(
                f"{where}: no space left on the disk; free some and run the same command again, finished steps are kept"
            ) from error
        raise
