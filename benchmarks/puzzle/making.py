"""From a cell to an engine: chosen, healed with the tokens that all get, built, and its losses taken.

Every cell has a folder: what was chosen, checkpoints of what trains, and the engine.  A killed run goes on there.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import _score
from benchmarks._ledger import Row
from benchmarks._passes import context_of, through
from benchmarks.low_bit.trained import opened
from benchmarks.puzzle import slack
from benchmarks.puzzle.cells import CONTROL, DENSE, DROPS, NO_BLD, QUANTIZED, SINGLE, TARGET, Cell, Plan, choice
from compress import files, registry
from compress.artifact import Artifact
from compress.context import Context, QuietReport
from compress.contracts import Exporter
from compress.data import Examples
from compress.engines import Engines
from compress.evaluate import EngineScorer


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run works, and what all of its cells share.

    Attributes:
        case: the dense model and its ids.
        work: a folder for what is made.
        plan: how much is run.
        ids: windows by role.
    """

    case: Path
    work: Path
    plan: Plan
    ids: Mapping[str, Tensor]

    def folder(self, cell: Cell) -> Path:
        """Return the folder of a cell."""
        return self.work / cell.key.replace(" ", "-")

    def chosen(self, cell: Cell) -> Path:
        """Return the folder of the model of a cell before it is trained."""
        return self.folder(cell) / "chosen"

    def context(self, folder: Path, report: QuietReport) -> Context:
        """Return the surroundings of a pass that keeps its checkpoints in a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        windows = {"calibration": self.ids["calibration"], "training": self.ids["training"][: self.plan.windows]}
        return dataclasses.replace(
            context_of(folder, parent=lambda: opened(self.case), **windows),
            targets={TARGET.name: TARGET}, model=str(self.case / "model"), cache=self.work / "cache", report=report,
            workers=os.cpu_count() or 1,
        )  # fmt: skip

    @property
    def library(self) -> Path:
        """The folder of the distilled blocks, made when absent; a killed distillation goes on."""
        folder, plan = self.work / "bld", self.plan
        if not (folder / "done.json").exists():
            settings = {"attention": plan.attention, "ffn": plan.ffn, "steps": plan.bld, "lr": 3e-3, "batch": 4}
            report, started = QuietReport(), time.monotonic()
            through("bld", settings, opened(self.case), self.context(folder, report))
            told = {"seconds": round(time.monotonic() - started, 1), "blocks": report.measured.get("blocks", [])}
            files.write_json(folder / "done.json", told)
            shutil.rmtree(folder / "distillation", ignore_errors=True)  # hidden states, which nothing needs any more
        return folder / "library"


def made(cell: Cell, place: Place) -> Row:
    """Make the engine of a cell, and return what is known of it.

    Raises:
        UserFault: no choice keeps the budget, or the model has no such blocks.
    """
    started, folder = time.monotonic(), place.folder(cell)
    row = choose(cell, place)
    artifact = opened(place.case) if cell.curve == SINGLE else Artifact.load(place.chosen(cell))
    row["unhealed"] = [round(v, 6) for v in _score.window_losses(artifact.model, place.ids["evaluation"])]
    artifact = _healed(artifact, cell, place, folder)
    engine = folder / "engine"
    if not engine.exists():
        report = QuietReport()
        with files.atomic_folder(engine) as new:
            Engines().build(artifact, _exporter(), TARGET, new, place.context(folder / "building", report))
    row |= scores(engine, place.ids["evaluation"])
    size = sum(f.stat().st_size for f in engine.rglob("*") if f.is_file())
    for name in ("healing", "building", "choosing"):  # checkpoints, and engines of the loop
        shutil.rmtree(folder / name, ignore_errors=True)
    return {**row, "file_mib": round(size / 2**20, 3), "seconds": round(time.monotonic() - started, 1)}


def choose(cell: Cell, place: Place) -> Row:
    """Choose the blocks of a cell, unless they are, and return what is known of the choice.

    Raises:
        UserFault: no choice keeps the budget, or the model has no such blocks.
    """
    if cell.curve == SINGLE:
        return {}
    kept = place.chosen(cell)
    if not kept.exists():
        report = QuietReport()
        context = place.context(kept.parent / "choosing", report)
        if cell.way in DROPS:
            settings = {"layers": int(cell.amount), "neurons": 0.0, "layer_criterion": DROPS[cell.way]}
            artifact, told = through("structured", settings, opened(place.case), context), {}
        else:
            settings, library = choice(cell, place.plan), None if cell.way == NO_BLD else place.library
            artifact = through("puzzle", settings, opened(place.case).after(library=library), context)
            told = {k: report.measured.get(k, []) for k in ("rounds", "choice", "solution")}
            if not (settings.get("refine") or settings.get("rescore")):  # they chose by other scores than upgrades have
                again = opened(place.case).after(library=library)
                told["upgrades"] = slack.upgrades(settings, again, told, context)
        with files.atomic_folder(kept) as new:
            artifact.save(new)
            files.write_json(new / "told.json", told)
    found: Row = files.read_json(kept / "told.json")
    return found


def _healed(artifact: Artifact, cell: Cell, place: Place, folder: Path) -> Artifact:
    """Return the model trained on as many tokens as every other, codes and zeros made true."""
    if cell.way == DENSE:
        return artifact
    codes = any(p.grid for p in artifact.plan.values())
    zeros = any(p.pattern for p in artifact.plan.values())
    for number, (use, settings) in enumerate(_uses(cell, place.plan, codes=codes, zeros=zeros)):
        context = place.context(folder / "healing" / f"{number}-{use}", QuietReport())
        artifact = through(use, settings, artifact, context)
    return artifact


def _uses(cell: Cell, plan: Plan, *, codes: bool, zeros: bool) -> list[tuple[str, dict[str, Any]]]:
    """Return the passes after the choice; those that train share the steps."""

    def trained(steps: int, **more: Any) -> dict[str, Any]:
        return {"steps": steps, "batch": plan.batch, "held_out": 0.1, **more}

    if cell.way == CONTROL:  # towards itself the parent has nothing to learn: what the text teaches it does
        return [("recover", trained(plan.heal, method="full", lr=plan.control_lr))]
    if grid := QUANTIZED.get(cell.way):
        learnt = trained(plan.heal, loss="kl", **grid)
        return [("gptq", grid), ("l4q", {**learnt, "again": True})] if "gptq" in cell.way else [("l4q", learnt)]
    first = plan.heal // 2 if codes else plan.heal
    found: list[tuple[str, dict[str, Any]]] = [("gkd", trained(first, lr=plan.lr))]
    if zeros:
        found.insert(0, ("magnitude", {"pattern": "plan"}))  # what is trained then knows of them
    if codes:
        found.append(("l4q", trained(plan.heal - first, loss="kl", bits="plan")))
    return found


def scores(engine: Path, windows: Tensor) -> Row:
    """Return an engine's loss of every window, nats a token, and its share of tokens guessed right."""
    examples, losses, hits = Examples.of_windows(windows), list[float](), list[float]()
    found = Engines().open(engine, TARGET)
    scorer = EngineScorer(found)
    for at in range(len(examples)):
        batch = examples.batch([at])
        logits, ids = scorer.logits(batch)[0, :-1].float(), torch.as_tensor(batch["input_ids"][0, 1:])
        losses.append(round(float(functional.cross_entropy(logits, ids)), 6))
        hits.append(round(float((logits.argmax(-1) == ids).float().mean()), 6))
    found.close()
    return {"losses": losses, "hits": hits}


def _exporter() -> Any:
    plugin = registry.load("exporters", "onnx", Exporter)
    return plugin(plugin.Settings())
