"""Verbs that open models and engines: evaluate, generate, compare, export."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress.cli.verbs import verb

if TYPE_CHECKING:
    from compress.contracts import Task

TASKS = ("causal-lm", "classification", "regression", "embedding")


@verb(
    "compress evaluate runs/demo/engines/laptop",
    "compress evaluate out/model --parent gpt2 --data corpus.txt",
)
@click.argument("path")
@click.option(
    "--data", help="A text, a folder, a hub data set or a built-in corpus; python-docs, held out, by default."
)
@click.option("--parent", help="A dense model to compare with: KL divergence, agreement, paired intervals.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evaluate(path: str, data: str | None, parent: str | None, as_json: bool) -> None:
    """Measure the quality of a model, an artifact or an engine.

    PATH is a folder of one of them, a hub id or "demo".
    """
    raise NotImplementedError


@verb(
    'compress generate runs/demo/engines/laptop "def main():"',
    'compress generate runs/demo/engines/laptop "Once" --tokens 100 --temperature 0.8 --top-p 0.95 --seed 7',
)
@click.argument("engine", type=click.Path(path_type=Path))
@click.argument("prompt")
@click.option("--tokens", type=click.IntRange(min=1), default=64, show_default=True, help="New tokens at most.")
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0 is greedy.")
@click.option(
    "--top-k", type=click.IntRange(min=0), default=0, show_default=True, help="Draw from the k likeliest; 0 = all."
)
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True, help="Nucleus.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of sampling.")
def generate(
    engine: Path, prompt: str, tokens: int, temperature: float, top_k: int, top_p: float, seed: int
) -> None:  # fmt: skip
    """Continue PROMPT with an ENGINE folder, streaming."""
    raise NotImplementedError


@verb(
    "compress compare runs/first runs/second",
    "compress compare runs/demo/engines/laptop runs/demo/engines/laptop-dense",
)
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
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
@click.option(
    "--task", type=click.Choice(TASKS), default="causal-lm", show_default=True, help="Of a model that is no artifact."
)
@click.option("--set", "pairs", multiple=True, metavar="KEY=VALUE", help="A setting of the exporter, as TOML; repeats.")
@click.option(
    "--target", "target_pairs", multiple=True, metavar="KEY=VALUE", help="A key of [[target]], as TOML; repeats."
)
def export(
    source: str, folder: Path, use: str, task: Task, pairs: tuple[str, ...], target_pairs: tuple[str, ...]
) -> None:
    """Export an artifact or a model as a verified engine.

    SOURCE is an artifact or model folder, a hub id or "demo"; FOLDER must not exist yet.
    """
    from compress import folders

    made = folders.export(source, folder, use=use, target=_table(target_pairs), settings=_table(pairs), task=task)
    click.echo(made)


def _table(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Read KEY=VALUE pairs as TOML; a bare word is a text."""
    table: dict[str, Any] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign:
            raise click.UsageError(f"{pair!r} must be KEY=VALUE")
        try:
            table |= tomllib.loads(f"{key.strip()} = {value}")
        except tomllib.TOMLDecodeError:
            table[key.strip()] = value
    return table


VERBS = (evaluate, generate, compare, export)
