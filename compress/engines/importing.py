"""What an engine's kit found on the engine's target, taken back to where the engine was made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from compress import files, report
from compress.engines.manifest import MANIFEST, MEASURED, read_manifest
from compress.errors import BadModel
from compress.measure import Measurement

_FORMAT = 1


def take(folder: Path, results: Path) -> dict[str, Any]:
    """Complete an engine's `measured.json`, and the report of its run, with the results of its kit.

    Args:
        folder: the engine.
        results: `kit-results.json` as the kit wrote it.

    Returns:
        The new content of `measured.json`.

    Raises:
        BadModel: no engine, no results of a kit, those of another engine, or of one that was not run or failed.
    """
    read_manifest(folder)
    found = _read(results)
    if found["engine"] != files.sha256(folder / MANIFEST):
        raise BadModel(f"{results}: was found of another engine than {folder}; give the folder that the kit came from")
    if found["state"] != "done":
        raise BadModel(f"{results}: the engine {found['state']} there: {found.get('why', 'nobody knows why')}")
    latency = _latency(found, folder, results)
    path = folder / MEASURED
    before = files.read_json(path) if path.is_file() else {}
    kept = {k: v for k, v in before.items() if k != "not_run"}
    told = {"used": found.get("used", []), "imported": found["machine"]}
    measured = {**kept, "parity": [found["parity"]], "latency": latency, **told}
    files.write_json(path, measured)
    if (folder.resolve().parents[1] / "report.json").is_file():
        _complete(folder.resolve().parents[1], folder, measured)
    return measured


def _read(results: Path) -> dict[str, Any]:
    try:
        found = files.read_json(results)
    except OSError as error:
        raise BadModel(f"{results}: cannot be read ({error.strerror}); the kit writes it on the target") from None
    except ValueError as error:
        raise BadModel(f"{results}: not readable as JSON ({error}); run the kit again") from None
    if not isinstance(found, dict) or found.get("format") != _FORMAT or not {"engine", "state"} <= found.keys():
        raise BadModel(f"{results}: no results of a kit of this version; run the kit that lies in the engine's folder")
    return found


def _latency(found: dict[str, Any], folder: Path, results: Path) -> dict[str, Any]:
    """Return the clock's figures with our names of the folders: the reference is the dense engine's."""
    try:
        clocked = Measurement.model_validate(found["latency"])
    except (KeyError, ValidationError) as error:
        raise BadModel(
            f"{results}: holds no figures of the clock ({type(error).__name__}); run the kit again"
        ) from None
    names = [f"{folder}-dense"] * (len(clocked.engines) - 1) + [str(folder)]
    engines = [e.model_copy(update={"folder": n}) for e, n in zip(clocked.engines, names, strict=True)]
    return clocked.model_copy(update={"engines": tuple(engines)}).model_dump(mode="json")


def _complete(run: Path, folder: Path, measured: dict[str, Any]) -> None:
    """Put the figures into the report of the run that made the engine, in the place of `not run`."""
    content, name = files.read_json(run / "report.json"), folder.name
    for engine in content["engines"]:
        if (run / engine["folder"]).resolve() == folder.resolve():
            engine.pop("not_run", None)
            engine |= {"parity": measured["parity"][0], "latency": measured["latency"]}
    content["not_run"] = [line for line in content.get("not_run", ()) if not line.startswith(f"{name}:")]
    gpu = measured["imported"].get("gpu", "its target")
    told = "; ".join([f"{name}: parity and latency on {gpu}, imported from its kit", *measured["used"]])
    content["measured"] = [line for line in content["measured"] if not line.startswith(f"{name}: parity")] + [told]
    report.write(run, content)
