"""Where data are: a built-in corpus, local files or a hub; each gives rows of named columns and a digest."""

from __future__ import annotations

import csv
import gzip
import json
import re
import sys
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from compress import files, registry
from compress.data import corpora
from compress.data.settings import DataSettings, Role
from compress.errors import BadData, NoSpace

ENDINGS = (".txt", ".jsonl", ".csv", ".parquet")

Row = tuple[str, Mapping[str, Any]]  # where it stands, for messages; value by column

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HELDOUT = ("validation", "validation_matched", "test", "heldout", "dev")  # a hub's names of it, the best first


class Place(ABC):
    """What a `source` setting means."""

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """Yield every row in a fixed order."""

    @abstractmethod
    def digest(self) -> str:
        """Return the hex digest of the content, whatever the path to it."""


def locate(settings: DataSettings, role: Role) -> Place:
    """Return what the source means, without reading it.

    Raises:
        BadData: nothing can be there, or a setting does not go with it.
    """
    source = settings.source
    path = Path(source).expanduser()
    if source in corpora.ALL:
        _no_hub_settings(settings)
        return Corpus(source, settings.split or ("heldout" if role == "evaluation" else "train"))
    if path.exists():
        _no_hub_settings(settings)
        return Files(path, settings.split)
    if _HUB_ID.fullmatch(source) and not source.startswith(".") and _ending(path) not in ENDINGS:
        return HubSet(settings, role)
    if "/" in source or path.suffix:
        raise BadData(f"{source}: no such file or folder")
    raise BadData(
        f"{source!r}: no such file or folder, no built-in corpus and no hub data set (owner/name)"
        + registry.nearest(source, corpora.ALL)
    )


def _no_hub_settings(settings: DataSettings) -> None:
    for key in ("name", "revision"):
        if getattr(settings, key) is not None:
            raise BadData(f"{settings.source}: {key} goes with a hub data set only; leave it out")


class Corpus(Place):
    """One side of a built-in corpus."""

    def __init__(self, name: str, split: str) -> None:
        if split not in corpora.SPLITS:
            raise BadData(f"{name}: has no split {split!r}{registry.nearest(split, corpora.SPLITS)}")
        self._name = name
        self._split: corpora.Split = "heldout" if split == "heldout" else "train"

    def rows(self) -> Iterator[Row]:
        """Yield a row with `text` for each document, and `label` in a labelled corpus."""
        for name, columns in corpora.rows(self._name, self._split):
            yield f"{self._name}: {name}", columns

    def digest(self) -> str:
        """Return the digest of what the documents are made from."""
        return files.digest_of([self._name, self._split, corpora.digest(self._name, self._split)])


class Files(Place):
    """A file, or all readable files of a folder in the order of their names.

    A txt file is one row with `text`; the rows of the others are theirs.
    """

    def __init__(self, path: Path, split: str | None) -> None:
        endings = ", ".join(ENDINGS)
        if path.is_file():
            if _ending(path) not in ENDINGS:
                raise BadData(
                    f"{path}: unknown file ending {path.suffix!r}; can be {endings} (the first three also .gz)"
                )
            if split is not None:
                raise BadData(f"{path}: a file has no split, got {split!r}; leave it out or give the folder")
            self._root, self._paths = path.parent, [path]
            return
        every = [p for p in sorted(path.rglob("*")) if p.is_file() and _ending(p) in ENDINGS]
        names = {p: p.relative_to(path).parts for p in every}
        every = [p for p in every if not any(part.startswith(".") for part in names[p])]
        if not every:
            raise BadData(f"{path}: no file in it that ends in {endings}")
        splits = {p: re.split(r"[.-]", names[p][0])[0] for p in every}
        if split is not None and split not in splits.values():
            raise BadData(
                f"{path}: no file or folder in it is named {split!r}{registry.nearest(split, splits.values())}"
            )
        self._root, self._paths = path, [p for p in every if split in (None, splits[p])]

    def rows(self) -> Iterator[Row]:
        """Yield the rows of every file."""
        readers = {".txt": _txt_rows, ".jsonl": _jsonl_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}
        for path in self._paths:
            with _readable(path):
                yield from readers[_ending(path)](path)

    def digest(self) -> str:
        """Return the digest of the files' bytes and of their names below the folder."""
        with _readable(self._root):
            return files.digest_of([(p.relative_to(self._root).as_posix(), files.sha256(p)) for p in self._paths])


class HubSet(Place):
    """One split of a hub data set; `glue/sst2` is short for `nyu-mll/glue` with the name `sst2`."""

    def __init__(self, settings: DataSettings, role: Role) -> None:
        owner, _, task = settings.source.partition("/")
        short = owner == "glue"
        self._id = "nyu-mll/glue" if short else settings.source
        self._name = task if short else settings.name
        self._revision, self._split, self._role = settings.revision, settings.split, role

    def rows(self) -> Iterator[Row]:
        """Yield the rows of the split."""
        for index, row in enumerate(self._table):
            yield f"{self._id} row {index}", row

    def digest(self) -> str:
        """Return the digest of the data set's identity: repository, commit, configuration and split."""
        return files.digest_of([self._table._fingerprint, len(self._table)])

    @cached_property
    def _table(self) -> Any:
        import datasets  # half a second that only hub data sets need

        bars = datasets.utils.logging.is_progress_bar_enabled()
        datasets.disable_progress_bars()
        try:
            with files.disk_errors(Path(datasets.config.HF_DATASETS_CACHE)):
                found = datasets.load_dataset(self._id, self._name, split=self._split, revision=self._revision)
        except NoSpace:
            raise
        except Exception as error:  # network, hub and data set each fail in ways of their own; all are told
            reason = " ".join(str(error).split())[:240]
            raise BadData(
                f"{self._id!r}: no such file or folder, and the hub did not give it ({reason}); "
                "check the name and the network"
            ) from error
        finally:
            if bars:
                datasets.enable_progress_bars()
        if self._split is not None:
            return found
        wanted = _HELDOUT if self._role == "evaluation" else ("train",)
        for split in wanted:
            if split in found:
                return found[split]
        raise BadData(f"{self._id}: has no split {wanted[0]!r} for {self._role}; set split to one of {sorted(found)}")


def _ending(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _open(path: Path, newline: str | None = None) -> IO[str]:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline=newline)
    return path.open(encoding="utf-8-sig", newline=newline)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise BadData(f"{path}: not UTF-8 text ({error.reason}); convert it") from None
    except (OSError, EOFError, zlib.error) as error:
        raise BadData(f"{path}: cannot be read ({error})") from error


def _txt_rows(path: Path) -> Iterator[Row]:
    with _open(path) as file:
        yield str(path), {"text": file.read()}


def _jsonl_rows(path: Path) -> Iterator[Row]:
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise BadData(f"{where}: not JSON ({error})") from None
            if not isinstance(row, dict):
                raise BadData(f"{where}: must be an object of columns, got {type(row).__name__}")
            yield where, row


def _csv_rows(path: Path) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # a field may be a whole document
    with _open(path, newline="") as file:
        reader, last = csv.DictReader(file, strict=True), 0
        try:
            for row in reader:
                last, where = reader.line_num, f"{path}:{reader.line_num}"
                if None in row or None in row.values():
                    raise BadData(f"{where}: another number of fields than the {len(reader.fieldnames or ())} columns")
                yield where, row
        except csv.Error as error:
            raise BadData(f"{path}:{max(last, 1) + 1}: not CSV ({error})") from None


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow  # only parquet needs it
    from pyarrow import parquet

    try:
        for group in parquet.ParquetFile(path).iter_batches():
            for row in group.to_pylist():
                yield str(path), row
    except pyarrow.ArrowException as error:
        raise BadData(f"{path}: not parquet ({str(error).partition(chr(10))[0]})") from None
