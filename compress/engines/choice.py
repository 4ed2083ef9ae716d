"""Which way of writing an engine is kept: the fastest of those that lose no more than the user allows, by measurement.

An engine is written exact first, and proved.  Its variants compute with less precision.  Each reads windows beside the
exact engine, and the clock times all of them in turns on the target's request.  What a variant loses is the rise of its
loss or its KL divergence from the exact engine, whichever is more, in nats a token of a causal model; a classifier's is
its KL in nats a text, and any other's the share of the outputs' energy that differs.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compress import measure
from compress.artifact import Artifact
from compress.context import Context, Report
from compress.contracts import Export, Exporter, Target
from compress.data import Examples
from compress.engines.manifest import seal
from compress.facts import Task
from compress.measure import Measurement, digits

if TYPE_CHECKING:
    from compress.evaluate.scorers import Scorer

EXACT = "exact"
INTEGER = "integer"  # inputs are what the codes ask for
WINDOWS = 32
CLEAR = 0.97  # of the exact engine's time; nearer to it, a time tells nothing
_ROWS = 8  # texts at once; a causal model reads one window after the other
Losses = dict[str, float]


def keep_fastest(
    artifact: Artifact, exporter: Exporter, target: Target, exported: Export, folder: Path, context: Context
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Leave the best variant of an engine in its folder, with its `choice` in the manifest.

    Times differ from run to run and stay out of the manifest.

    Args:
        artifact: what was exported.
        exporter: how; reads `calibration` data where the context has them.
        target: the request that is timed.
        exported: the exact export, with variants.
        folder: holds it, proved.
        context: its own folder takes the variants, its report what was found.

    Returns:
        The manifest, and the time of every variant as a share of the exact engine's.
    """
    from compress.evaluate import EngineScorer  # which itself opens engines

    source = context.data.get("calibration")
    if source is None and exported.tolerance is not None:
        why = "no data to measure on what faster ones lose"
        context.report.note(f"exact kernels: {why}; a pipeline has data, and kernels = 'fast' needs none")
        return seal(artifact, exporter, target, exported, folder, {"choice": {"chosen": EXACT, "why": why}}), {}
    written, folders = {EXACT: exported}, {EXACT: folder}
    for variant in exported.variants:
        made = folders[variant.name] = context.folder / variant.name
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        written[variant.name] = variant.write(made)
        seal(artifact, exporter, target, written[variant.name], made)
    examples = source.examples(artifact.tokenizer) if source else None
    engines = {name: exporter.open(made, target) for name, made in folders.items()}
    try:
        scorers = {name: EngineScorer(engine) for name, engine in engines.items()}
        lost = losses(scorers, examples, artifact.task, context.report) if examples else {}
    finally:
        for engine in engines.values():
            engine.close()
    times = _times(folders, target, context.report)
    chosen = best(lost, {n: t["request"] for n, t in times.items()}, exported.tolerance)
    tried = {n: lost.get(n, {}) for n in written if n != EXACT}
    windows = min(WINDOWS, len(examples)) if examples else 0
    choice = {"chosen": chosen, "tolerance": exported.tolerance, "windows": windows, "tried": tried}
    _tell(choice, times, context.report)
    if chosen != EXACT:
        _replace_(folder, exported, folders[chosen], written[chosen])
    for variant in exported.variants:
        shutil.rmtree(folders[variant.name])
    return seal(artifact, exporter, target, written[chosen], folder, {"choice": choice}), times


def best(losses: Mapping[str, Losses], requests: Mapping[str, float], tolerance: float | None) -> str:
    """Return the fastest variant within the tolerance, or the exact one where none is clearly faster.

    Args:
        losses: by variant, among them what it `lost`.
        requests: by variant, time of a request as a share of the exact one's.
        tolerance: what may be lost; None = anything.
    """
    able = [n for n, time in requests.items() if time < CLEAR and (tolerance is None or losses[n]["lost"] <= tolerance)]
    return min(able, key=requests.__getitem__, default=EXACT)


def losses(scorers: Mapping[str, Scorer], examples: Examples, task: Task, report: Report) -> dict[str, Losses]:
    """Return what each loses against the `EXACT` one, a mean over rows."""
    count, step = min(WINDOWS, len(examples)), 1 if task == "causal-lm" else _ROWS
    found: dict[str, list[dict[str, Tensor]]] = {name: [] for name in scorers if name != EXACT}
    with report.bar("what faster kernels lose", count) as bar:
        for start in range(0, count, step):
            batch = examples.batch(range(start, min(start + step, count)))
            read = {
                n: s.logits(batch) if task == "causal-lm" else s.outputs(batch, task == "embedding")
                for n, s in scorers.items()
            }
            for name, rows in found.items():
                rows.append(_lost(batch, read[name], read[EXACT], task))
            bar.advance(len(batch["input_ids"]))
    means = {n: {k: float(torch.cat([r[k] for r in rows]).mean()) for k in rows[0]} for n, rows in found.items()}
    return {n: {**m, "lost": max(m.values())} for n, m in means.items()}


def _lost(batch: Mapping[str, Tensor], ours: Tensor, exact: Tensor, task: Task) -> dict[str, Tensor]:
    """Return per row what was lost, by name."""
    from compress.evaluate.samples import divergence, language

    if task == "causal-lm":
        found, before = language(batch, ours, exact), language(batch, exact, None)
        return {"loss_rise": found["loss"] - before["loss"], "kl": found["kl"]}
    ours, exact = ours.double(), exact.double()
    if task == "classification":
        return {"kl": divergence(exact.log_softmax(-1), ours.log_softmax(-1))}
    return {"energy": (ours - exact).square().sum(-1) / exact.square().sum(-1)}


def _times(folders: Mapping[str, Path], target: Target, report: Report) -> dict[str, dict[str, float]]:
    """Return of each variant the times of prefill, decode and request as shares of the exact engine's."""
    found: Measurement = measure.measure(list(folders.values()), target, report, processes=1, seconds=0.5)
    times = {}
    for name, figures in zip(folders, found.engines, strict=True):
        if name != EXACT:
            decode = {"decode": figures.decode.ratio} if figures.decode else {}
            times[name] = {"prefill": figures.prefill.ratio, **decode, "request": figures.request.ratio}
    return times


def _tell(choice: Mapping[str, Any], times: Mapping[str, Mapping[str, float]], report: Report) -> None:
    for name, lost in choice["tried"].items():
        speed = f"{1 / times[name]['request']:.2f} times as fast as the exact ones"
        loses = f"loses {digits(lost['lost'], 2)}" if lost else "lost nobody knows how much"
        report.note(f"kernels {name!r}: {speed}, {loses}, {'taken' if name == choice['chosen'] else 'left'}")


def _replace_(folder: Path, old: Export, other: Path, new: Export) -> None:
    for name in old.files:
        (folder / name).unlink()
    for name in new.files:
        shutil.move(other / name, folder / name)
