"""The verb over latency profiles."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress.cli.verbs import verb

if TYPE_CHECKING:
    from compress.profiling import Wanted


def _numbers(name: str, what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(name, type=click.IntRange(min=1), multiple=True, help=f"{what}; repeats.")


@verb(
    "compress profile pipeline.toml -o laptop.json --neurons 256 --neurons 512 --precision fp32 --precision int4-g128",
    "compress profile demo --shape ffn:64,128 --prompt 32 -o laptop.json",
    "compress profile pipeline.toml -o board.json --on pi@raspberry",
    "compress profile pipeline.toml -o laptop.json --check",
)
@click.argument("source", required=False)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default="profile.json", show_default=True, help="The profile."
)
@click.option("--target", help="Name of the pipeline's target; its first unless given.")
@click.option(
    "--shape", "shapes", multiple=True, metavar="PART:SIZES", help="A part more, such as ffn:64,128; repeats."
)
@_numbers("--kv-heads", "Fewer key heads, of which attention is measured too")
@_numbers("--neurons", "Fewer neurons, of which the FFN is measured too")
@click.option("--precision", "precisions", multiple=True, help="fp32, int4-g128, int8-dynamic, ...; repeats.")
@click.option("--pattern", "patterns", multiple=True, help="dense, unstructured or N:M; repeats.")
@_numbers("--prompt", "Prompt tokens beside the target's")
@_numbers("--batch", "Sequences at once beside the target's")
@click.option("--copies", default="4,8", show_default=True, help="Depths between which a part's time is the slope.")
@click.option("--models", type=click.IntRange(min=0), default=8, show_default=True, help="Whole models for intervals.")
@click.option("--processes", type=click.IntRange(min=1), default=8, show_default=True, help="Per measurement.")
@click.option(
    "--seconds", type=click.FloatRange(0, min_open=True), default=0.5, show_default=True, help="Per phase and process."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of weights and whole models.")
@click.option("--on", "host", default="", metavar="USER@HOST", help="Time the engines there, over ssh.")
@click.option("--python", default="python3", show_default=True, help="With --on: what runs Python there.")
@click.option("--runtime", help="Of a model that comes without a pipeline: onnxruntime, torch or torch-compiled.")
@click.option("--device", help="Likewise: cpu or cuda.")
@click.option("--threads", type=click.IntRange(min=1), help="Likewise: threads of one operator.")
@click.option("--check", is_flag=True, help="Measure a random tenth again, tell the drift, and write nothing.")
@click.option("--allow-foreign", is_flag=True, help="With --check: the profile may be of another machine.")
@click.option("--schema", is_flag=True, help="Print the JSON schema of profile files, and do no more.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing; the log is written all the same.")
def profile(
    source: str | None, output: Path, check: bool, allow_foreign: bool, schema: bool, quiet: bool, **wishes: Any
) -> None:
    """Measure what each block shape costs on this machine.

    SOURCE is a pipeline file, for its model, target and the shapes that its passes make; or a model folder, a hub id
    or "demo".  Run it again to go on where it stopped.
    """
    from compress.pipeline.console import Console
    from compress.profiling import profiler

    found = profiler()
    if schema:
        click.echo(json.dumps(found.schema(), indent=2))
        return
    if source is None:
        raise click.UsageError("give the SOURCE, a pipeline file or a model, or --schema")
    wanted = _wanted(source, **wishes)
    report = Console(output.with_suffix(".log"), quiet=quiet)
    if check:
        lines = found.check(wanted, output, report, allow_foreign=allow_foreign)
    else:
        lines = found.take(wanted, output, report)
    for line in lines:
        report.say(line)


def _wanted(
    source: str, target: str | None, prompt: tuple[int, ...], batch: tuple[int, ...], copies: str,
    precisions: tuple[str, ...], patterns: tuple[str, ...], runtime: str | None, device: str | None,
    threads: int | None, **rest: Any,
) -> Wanted:  # fmt: skip
    """Return the wishes that a pipeline file and the options tell."""
    from compress.contracts import Target
    from compress.profiling import Wanted, of_pipeline

    if not all(n.strip().isdigit() for n in copies.split(",")):
        raise click.UsageError(f"--copies must be depths such as 4,8, got {copies!r}")
    given: dict[str, Any] = {"model": source, "target": Target()}
    if source.endswith(".toml"):
        given = of_pipeline(source, target)
    own: Target = given["target"]
    about = {k: v for k, v in (("runtime", runtime), ("device", device), ("threads", threads)) if v}
    if source.endswith(".toml") and about:
        raise click.UsageError(f"--{min(about)}: the pipeline's [[target]] says that; choose one with --target")
    if not source.endswith(".toml"):  # a model alone has no target of its own
        about |= {"prompt": (prompt or (own.prompt,))[0], "batch": (batch or (own.batch,))[0]}
        given["target"] = own = own.model_copy(update=about)
    requests = [(b, p) for b in (own.batch, *batch) for p in (own.prompt, *prompt)]
    return Wanted(
        **given, requests=tuple(dict.fromkeys(requests)), copies=tuple(int(n) for n in copies.split(",")),
        precisions=precisions or (own.precision,), patterns=patterns or ("dense",), **rest,
    )  # fmt: skip


VERBS = (profile,)
