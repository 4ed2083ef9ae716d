"""Verbs over pipeline files and run folders: run, sweep, check, plan, report, init."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Literal

import click

from compress.cli.columns import columns, duration, size
from compress.cli.verbs import verb

_FILE = click.argument("file", type=click.Path(path_type=Path))
_FOLDER = click.option("--folder", type=click.Path(path_type=Path), help="Run folder instead of the file's.")


@verb("compress run pipeline.toml --folder runs/second")
@_FILE
@_FOLDER
@click.option("-q", "--quiet", is_flag=True, help="Print nothing; the log is written all the same.")
def run(file: Path, folder: Path | None, quiet: bool) -> None:
    """Run a pipeline FILE; run it again to go on where it stopped."""
    from compress import settings

    opened = settings.read(file)  # before seconds of imports, so that a fault of the file is told at once
    from compress import pipeline

    pipeline.run(opened, folder=folder, quiet=quiet)


@verb("compress check pipeline.toml", "compress check --schema > pipeline.schema.json")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--schema", is_flag=True, help="Print the JSON schema of pipeline files for editors, and do no more.")
def check(file: Path | None, schema: bool) -> None:
    """Name every fault of a pipeline FILE at once, before any work."""
    from compress import settings

    if schema:
        click.echo(json.dumps(settings.schema(), indent=2))
        return
    if file is None:
        raise click.UsageError("give the FILE to check, or --schema")
    opened = settings.read(file)
    facts = settings.check(opened)
    steps = " -> ".join([opened.model.source, *(e.name for e in opened.passes), *(e.name for e in opened.exports)])
    click.echo(f"{file}: no fault; {steps}; {facts[0].family}, {facts[0].parameters:,} parameters")


@verb("compress plan pipeline.toml", "compress plan pipeline.toml --latency")
@_FILE
@_FOLDER
@click.option("--latency", is_flag=True, help="Time engines of random weights in the planned shapes, here and now.")
def plan(file: Path, folder: Path | None, latency: bool) -> None:
    """Print the steps of a pipeline FILE, cached or not, with costs."""
    from compress import pipeline

    steps = pipeline.plan(file, folder=folder)
    rows: list[tuple[object, ...]] = [("step", "name", "use", "cached", "trainable", "peak memory", "disk", "time")]
    for step in steps:
        cost = step.estimate
        rows.append(
            (step.index, step.name, step.use, "yes" if step.cached else "no", f"{cost.trainable:,}",
             size(cost.peak_mib), size(cost.disk_mib), "-" if step.cached else duration(cost.seconds))
        )  # fmt: skip
    click.echo(columns(rows, right=(0, 4, 5, 6, 7)))
    left = sum(s.estimate.seconds for s in steps if not s.cached)
    click.echo(f"estimated: {duration(left)} for what is not cached; exports and measurements come on top")
    if latency:
        from compress.pipeline.console import Console

        tried = pipeline.dry_run(file, report=Console(Path(os.devnull)))
        click.echo(
            "\n".join(line for found in tried for line in found.lines())
            or "nothing to time: no [[export]] writes an engine"
        )


@verb("compress report runs/demo")
@click.argument("run", type=click.Path(path_type=Path))
def report(run: Path) -> None:
    """Write report.html of a finished RUN folder anew."""
    from compress import pipeline

    click.echo(pipeline.report(run))


@verb("compress init demo", "compress init Qwen/Qwen2.5-0.5B --target cuda -o qwen.toml")
@click.argument("model")
@click.option("--target", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="The hardware.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default="pipeline.toml", show_default=True, help="The file."
)
@click.option("--data", help="Source of training and evaluation; labelled data for a classifier.")
def init(model: str, target: Literal["cpu", "cuda"], output: Path, data: str | None) -> None:
    """Write a commented pipeline file for MODEL that runs.

    MODEL is a folder, a hub id or "demo".
    """
    from compress.init import write

    write(model, output, target=target, data=data)
    click.echo(f"{output}: written; look at it, then `compress run {output}`")


@verb("compress sweep pipeline.toml", "compress sweep examples/sweep.toml --folder runs/second -q")
@_FILE
@_FOLDER
@click.option("-q", "--quiet", is_flag=True, help="Print nothing; the logs are written all the same.")
def sweep(file: Path, folder: Path | None, quiet: bool) -> None:
    """Make an engine for each budget and target in [sweep] of FILE.

    The pass that chooses within a `budget` gets each in turn; what points share is made once.  Engines, sweep.json
    and sweep.html are in RUN/sweep.  Run it again to go on where it stopped; a point that fails leaves the others
    whole, and ends the command with 2.
    """
    from compress import settings

    opened = settings.read(file)
    from compress.sweep.running import sweep as all_points

    all_points(opened, folder=folder, quiet=quiet)


VERBS = (run, sweep, check, plan, report, init)
