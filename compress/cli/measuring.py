"""Verbs that open models and engines: evaluate, generate, compare, export."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress.cli.verbs import verb

if TYPE_CHECKING:
    from compress.data.settings import DataSettings
    from compress.facts import Task

_TASKS = ("causal-lm", "classification", "regression", "embedding")
_TASK = click.option(
    "--task", type=click.Choice(_TASKS), default="causal-lm", show_default=True, help="Of a model that is no artifact."
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _pairs(option: str, table: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    name = f"{option.lstrip('-')}_pairs"
    return click.option(option, name, multiple=True, metavar="KEY=VALUE", help=f"A key of {table}, as TOML; repeats.")


@verb(
    "compress evaluate runs/demo/engines/laptop",
    "compress evaluate out/model --parent gpt2 --data corpus.txt --set length=512",
    "compress evaluate runs/demo/engines/gpu --import kit-results.json",
)
@click.argument("path")
@click.option("--data", help="A source as in [data.evaluation], or a pipeline file for its; else python-docs.")
@_pairs("--set", "[data.evaluation]")
@click.option("--parent", help="The dense model: adds KL divergence, agreement and paired differences.")
@_TASK
@click.option("--device", default="cpu", show_default=True, help="Where models run; engines know theirs.")
@click.option("--import", "results", type=click.Path(path_type=Path), help="What an engine's kit found on its target.")
@_JSON
def evaluate(
    path: str, data: str | None, set_pairs: tuple[str, ...], parent: str | None, task: Task, device: str,
    results: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Measure the quality of a model, an artifact or an engine.

    PATH is a folder of one of them, a hub id or "demo".
    """
    if results:
        from compress import folders
        from compress.engines import importing

        taken = importing.take(Path(path), results)
        click.echo(json.dumps(taken, indent=2) if as_json else "\n".join(folders.lines(folders.show(path))))
        return
    from compress.evaluate.paths import evaluate_path

    found = evaluate_path(path, _data(data, _table(set_pairs)), parent, task=task, device=device)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2))
        return
    click.echo(f"{path} ({found.kind}), with 95 % intervals:")
    click.echo("\n".join(f"  {metric}" for metric in found.metrics))
    if found.deltas:
        click.echo(f"minus {parent}, paired:")
        click.echo("\n".join(f"  {delta}" for delta in found.deltas))


@verb(
    'compress generate runs/demo/engines/laptop "def main():"',
    'compress generate runs/demo/engines/laptop "Once" --tokens 100 --temperature 0.8 --top-p 0.95 --seed 7',
)
@click.argument("engine", type=click.Path(path_type=Path))
@click.argument("prompt")
@click.option("--tokens", type=click.IntRange(min=1), default=64, show_default=True, help="New tokens at most.")
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0 is greedy.")
@click.option(
    "--top-k", type=click.IntRange(min=0), default=0, show_default=True, help="Likeliest to draw from; 0: all."
)
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True, help="Nucleus.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of sampling.")
def generate(
    engine: Path, prompt: str, tokens: int, temperature: float, top_k: int, top_p: float, seed: int
) -> None:  # fmt: skip
    """Continue PROMPT with an ENGINE folder, streaming."""
    from compress.generate import generate_path

    for piece in generate_path(engine, prompt, tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed):
        click.echo(piece, nl=False)
    click.echo()


@verb(
    "compress compare runs/first runs/second",
    "compress compare runs/demo/engines/laptop-dense runs/demo/engines/laptop",
)
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@_JSON
def compare(a: Path, b: Path, as_json: bool) -> None:
    """Time two engines, or those of two runs, interleaved.

    A and B are engine folders or run folders; A is the reference of all ratios.
    """
    from compress import measure

    measured = measure.compare(a, b)
    click.echo(measured.model_dump_json(indent=2) if as_json else "\n".join(measure.lines(measured)))


@verb(
    "compress export runs/demo/steps/02-magnitude-0123456789ab out/engine --target threads=4",
    "compress export gpt2 out/gpt2 --use safetensors",
)
@click.argument("source")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--use", default="onnx", show_default=True, help="The exporter.")
@_pairs("--set", "the exporter's settings")
@_pairs("--target", "[[target]]")
@_TASK
def export(
    source: str, folder: Path, use: str, set_pairs: tuple[str, ...], target_pairs: tuple[str, ...], task: Task
) -> None:
    """Export an artifact or a model as a verified engine.

    SOURCE is an artifact or model folder, a hub id or "demo"; FOLDER must not exist yet.
    """
    from compress import folders
    from compress.context import QuietReport

    settings, target, report = _table(set_pairs), _table(target_pairs), QuietReport()
    click.echo(folders.export(source, folder, use=use, target=target, settings=settings, task=task, report=report))
    for note in report.notes:
        click.echo(f"  {note}")


def _data(source: str | None, given: dict[str, Any]) -> DataSettings:
    """Return the settings of `[data.evaluation]`: those of a pipeline file, or of a source."""
    from compress import settings
    from compress.data.settings import DataSettings
    from compress.settings.faults import checked

    table = DataSettings.defaults("evaluation")
    if source and source.endswith(".toml"):
        table = settings.read(source).data["evaluation"].model_dump(mode="json")
    elif source:
        table["source"] = source
    return checked(DataSettings, table | given, "data.evaluation")


def _table(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Read KEY=VALUE pairs as TOML; a bare word is a text."""
    table: dict[str, Any] = {}
    for pair in pairs:
        key, sign, value = (part.strip() for part in pair.partition("="))
        if not sign:
            raise click.UsageError(f"{pair!r} must be KEY=VALUE")
        try:
            table[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            table[key] = value
    return table


VERBS = (evaluate, generate, compare, export)
