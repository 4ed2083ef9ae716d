"""`compress.json`, the card of an artifact: what it is, and the digest of every file beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compress import files
from compress.errors import BadModel, Tampered

CARD = "compress.json"
FORMAT = 3
_ENTRIES = {"format", "task", "masks", "grids", "plan", "lineage", "files"}


def read_card(folder: Path) -> dict[str, Any]:
    """Return the content of `compress.json`.

    Raises:
        BadModel: there is none, or another version of `compress` wrote it.
        Tampered: it is not what `Artifact.save` writes.
    """
    try:
        card: dict[str, Any] = files.read_json(folder / CARD)
    except FileNotFoundError:
        raise BadModel(f"{folder}: no {CARD} in it, so it is no artifact of compress") from None
    except ValueError as error:
        raise Tampered(f"{folder / CARD}: not readable as JSON ({error}); delete the folder and run again") from None
    if isinstance(card, dict) and card.get("format", FORMAT) != FORMAT:
        raise BadModel(f"{folder / CARD}: has format {card['format']}, this version reads {FORMAT}; make it anew")
    if not isinstance(card, dict) or not card.keys() >= _ENTRIES:
        raise Tampered(f"{folder / CARD}: entries are missing; delete the folder and run again")
    return card


def check(folder: Path) -> None:
    """Raise `Tampered` unless every recorded file is there with its recorded bytes."""
    files.check(folder, read_card(folder)["files"], CARD)


def digest(folder: Path) -> str:
    """Return the artifact's digest: that of its card, which holds the digest of every other file."""
    return files.sha256(folder / CARD)
