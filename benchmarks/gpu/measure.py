"""One line of results: an engine that is proved and scored, engines that took turns, the kit in its own process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks._ledger import Row
from benchmarks.gpu import engines
from benchmarks.gpu.plan import DEMO, FLAVOURS, Turns, Way, tensorrt
from compress import files
from compress.data import DataSettings, Examples, Source
from compress.engines import importing, parity
from compress.errors import CompressError, Unavailable
from compress.evaluate import Subject, evaluate
from compress.measure import measure

LENGTH = 256


def examples(windows: int) -> Examples:
    """Return held-out windows of the demo model's text."""
    settings = DataSettings(source="python-docs", windows=windows, length=LENGTH)
    tokenizer = engines.artifact(DEMO).tokenizer
    return Source(settings, "evaluation", "causal-lm").examples(tokenizer)


def quality(subject: Subject, windows: Examples) -> dict[str, list[float]]:
    """Return the perplexity with its 95 % interval."""
    found = evaluate(subject, windows, "causal-lm")["perplexity"]
    return {"perplexity": [round(v, 5) for v in (found.value, found.low, found.high)]}


def engine(work: Path, model: str, way: Way, windows: Examples | None) -> Row:
    """Return what one engine does here: whether its plan loads as it came, parity, kernels and perplexity.

    Args:
        work: where engines are.
        model: of it.
        way: to it.
        windows: to score it on; None = not scored.

    Raises:
        Unavailable: its runtime is not here; that is no result.
    """
    row: Row = {"model": model, "way": way.name}
    try:
        folder = engines.written(work, model, way)
        opened, row["rebuilt"] = engines.opened(folder, way)
        try:
            row["providers"] = list(opened.providers())
            row["parity"] = parity.verify(opened, engines.artifact(model, way.change))
            row |= quality(opened, windows) if windows else {}
        finally:
            opened.close()
        row["used"] = engines.exporter(way).used(folder)
    except Unavailable:
        raise
    except (CompressError, RuntimeError, ValueError) as error:  # a runtime's own faults are results here
        row["failed"] = _said(error)
    return row


def clock(work: Path, turns: Turns, able: list[Way], seconds: float) -> Row:
    """Return the times of the engines that run here, as shares of the first one's, or why there are none."""
    batch, prompt = turns.request
    target = able[0].target.model_copy(update={"batch": batch, "prompt": prompt})
    row: Row = {"model": turns.model, "about": turns.about, "request": [batch, prompt]}
    try:
        found = measure([work / turns.model / w.slug for w in able], target, seconds=seconds)
    except CompressError as error:
        return {**row, "failed": _said(error)}
    rows = {}
    for way, figures in zip(able, found.engines, strict=True):
        phases = {"prefill": figures.prefill, "decode": figures.decode, "request": figures.request}
        rows[way.name] = {n: [p.ms, p.ratio, p.ratio_low, p.ratio_high] for n, p in phases.items() if p}
        rows[way.name]["mib"] = [round(figures.file_mib, 2)]
    about = {"clock": found.clock, "versions": found.versions, "flags": list(found.flags)}
    return {**row, **about, "rows": rows}


def kit(work: Path) -> Row:
    """Return what the kit of an engine finds in a process of its own, and that its results can be taken back."""
    folder = work / DEMO / tensorrt(FLAVOURS[0]).slug
    if not (folder / "engine.json").is_file():
        raise Unavailable(f"no engine of {FLAVOURS[0]} here")
    results = folder / "kit-results.json"
    results.unlink(missing_ok=True)
    done = subprocess.run([sys.executable, str(folder / "kit.py")], capture_output=True, text=True, check=False)
    if not results.is_file():
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        return {"status": done.returncode, "state": "failed", "why": said[-1][:300]}
    found = files.read_json(results)
    row: Row = {"status": done.returncode, **{k: found.get(k) for k in ("state", "why", "used", "parity")}}
    if found["state"] == "done":
        row["imported"] = sorted(importing.take(folder, results))
    return row


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
