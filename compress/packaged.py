"""A model that came with an installed Python package: a folder of it, found without importing anything."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from compress.errors import BadModel

PREFIX = "package:"


def folder_of(source: str) -> Path:
    """Return the folder that `package:name/folder` means, in the package of that name.

    Raises:
        BadModel: no such package is installed, or no such folder is in it.
    """
    name, _, inside = source.removeprefix(PREFIX).partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        hint = f"pip install {name.replace('_', '-')}" if name.isidentifier() else f"{PREFIX}name/folder"
        raise BadModel(f"{source!r}: no package {name!r} is installed here; {hint} would do, or a folder or a hub id")
    homes = [Path(home).resolve() for home in spec.submodule_search_locations]
    for home in homes:
        folder = (home / inside).resolve()
        if folder.is_dir() and folder.is_relative_to(home):
            return folder
    raise BadModel(f"{source!r}: no folder {inside!r} in {homes[0]}")
