"""Verbs that only look: list, show, doctor."""

from __future__ import annotations

import json
from pathlib import Path

import click

from compress.cli.columns import columns
from compress.cli.verbs import verb


@verb("compress list", "compress list magnitude", name="list")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(name: str | None, as_json: bool) -> None:
    """List passes, exporters and families, or show one's card.

    With NAME: its card and settings, with types, defaults and ranges.
    """
    from dataclasses import asdict

    from compress import cards

    if name is None:
        rooms = cards.catalogue()
        if as_json:
            click.echo(json.dumps({r: {c.name: c.summary for c in found} for r, found in rooms.items()}, indent=2))
            return
        for room, found in rooms.items():
            click.echo(f"{room}:")
            click.echo(columns([(c.name, c.summary) for c in found], indent="  ") or "  none")
        return
    card = cards.card(name)
    if as_json:
        click.echo(json.dumps(asdict(card), indent=2))
        return
    click.echo(card.text)
    if card.settings:
        click.echo("\nSettings, with their defaults:")
    for one in card.settings:
        limits = f" {one.range}" if one.range else ""
        click.echo(f"  {one.name} = {one.default or '(must be given)'}  # {one.type}{limits}")
        click.echo(f"      {one.description}")


@verb("compress show runs/demo", "compress show runs/demo/engines/laptop", "compress show h100-sxm")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--html", type=click.Path(path_type=Path), help="Of a profile: write a page with plots here instead.")
def show(path: Path, as_json: bool, html: Path | None) -> None:
    """Tell what a folder or a latency profile is and how it was made.

    PATH is a run, an artifact, an engine, a model, a profile or the name of a datasheet such as h100-sxm.
    """
    from compress import folders
    from compress.profiling import profiler

    if not path.is_dir() and (profiles := profiler()).known(path):
        if html:
            from compress import files, report

            files.write_atomic(html, report.profile_page(profiles.figures(path)))
            click.echo(html)
            return
        click.echo(json.dumps(profiles.document(path), indent=2) if as_json else "\n".join(profiles.lines(path)))
        return
    if html:
        raise click.UsageError(f"{path}: --html is for latency profiles; `compress report RUN` writes a run's page")
    found = folders.show(path)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    click.echo("\n".join(folders.lines(found)))


@verb("compress doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Tell what this machine has, what it lacks, what mends it.

    Ends with 2 when something cannot work.
    """
    from dataclasses import asdict

    from compress.doctor import doctor as examine
    from compress.doctor import lines

    findings = examine()
    click.echo(json.dumps([asdict(f) for f in findings], indent=2) if as_json else "\n".join(lines(findings)))
    if any(f.level == "error" for f in findings):
        ctx.exit(2)


VERBS = (list_, show, doctor)
