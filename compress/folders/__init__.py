"""What a folder is: a run, an artifact, an engine or a model; and how one becomes an export outside a pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from compress import files
from compress.errors import BadModel
from compress.folders.exporting import export
from compress.folders.telling import lines

__all__ = ["Kind", "export", "kind_of", "lines", "show"]

Kind = Literal["run", "engine", "artifact", "model"]
_SIGNS: tuple[tuple[str, Kind], ...] = (
    ("steps", "run"),
    ("engine.json", "engine"),
    ("compress.json", "artifact"),
    ("config.json", "model"),
)


def kind_of(path: Path | str) -> Kind:
    """Return what a folder is.

    Raises:
        BadModel: it is none of them, or not there.
    """
    path = Path(path)
    if not path.is_dir():
        raise BadModel(f"{path}: no such folder")
    for sign, kind in _SIGNS:
        if (path / sign).exists():
            return kind
    raise BadModel(f"{path}: no run, artifact, engine or model folder; none of {', '.join(s for s, _ in _SIGNS)} in it")


def show(path: Path | str) -> dict[str, Any]:
    """Return what a folder is and how it was made, without opening the model.

    Raises:
        BadModel: it is no folder of ours and no model.
    """
    path = Path(path)
    kind = kind_of(path)
    mib = sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) / 2**20
    about: dict[str, Any] = {"path": str(path), "kind": kind, "size_mib": round(mib, 3)}
    match kind:
        case "run":
            about["steps"] = [show(p) for p in sorted((path / "steps").iterdir()) if (p / "compress.json").exists()]
            engines = sorted(p.parent for p in path.glob("engines/*/engine.json"))
            about["engines"] = [show(p) for p in engines]
            about["finished"] = (path / "report.json").exists()
        case "artifact":
            card = files.read_json(path / "compress.json")
            about |= {"task": card["task"], "lineage": card["lineage"], **_sparsity(path, card["masks"])}
            about["grids"] = card["grids"]
            about |= _shapes(files.read_json(path / "config.json"))
        case "engine":
            about |= files.read_json(path / "engine.json")
        case "model":
            config = files.read_json(path / "config.json")
            about |= _shapes(config)
            parent = config.get("parent", {}) | {"model_type": config.get("parent_type")}  # where blocks differ
            about |= {k: parent.get(k) or config.get(k) for k in ("model_type", "architectures", "dtype")}
    if (path / "measured.json").exists():
        measured = files.read_json(path / "measured.json")
        measured |= {  # an engine exported outside a run has one of each
            k: [measured[k]] for k in ("parity", "not_run") if isinstance(measured.get(k), dict | str)
        }
        about["measured"] = measured
    return about


def _shapes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return blocks and branches of a `config.json` that tells them, as one does whose blocks differ."""
    return {k: config[k] for k in ("blocks", "branches")} if config.get("model_type") == "compress" else {}


def _sparsity(folder: Path, shapes: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """Return the share of zeros under each mask; bits are counted packed, one mask at a time."""
    if not shapes:
        return {"sparsity": {}}
    import numpy as np
    from safetensors import safe_open

    with safe_open(folder / "masks.safetensors", framework="numpy") as masks:
        kept = {n: int(np.bitwise_count(masks.get_tensor(n)).sum(dtype=np.int64)) for n in shapes}
    shares = {n: round(1 - kept[n] / (rows * inputs), 6) for n, (rows, inputs) in shapes.items()}
    total = sum(rows * inputs for rows, inputs in shapes.values())
    return {"sparsity": shares, "sparsity_of_masked": round(1 - sum(kept.values()) / total, 6)}
