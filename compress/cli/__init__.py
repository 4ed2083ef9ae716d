"""The command line: verbs over the Python face, one line for every fault.

Exit status: 0 done, 2 something the user can mend, 1 a fault of compress.  Whatever is heavy (torch, transformers,
pydantic) is imported inside the verbs, so that help is there at once.
"""

from __future__ import annotations

import errno
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

import click

from compress.cli import looking, measuring, profiling, running
from compress.cli.verbs import Exemplary
from compress.errors import CompressError


class Verbs(Exemplary, click.Group):
    """A group of commands that turns every exception into one line and an exit status."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb; end with 2 for the user's faults and 1 for ours."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            click.echo("stopped; run the same command again to go on", err=True)
            ctx.exit(2)
        except CompressError as error:
            self._debug(ctx)
            click.echo(str(error), err=True)
            ctx.exit(error.exit_status)
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # `compress list | head`: click ends quietly
            self._debug(ctx)
            click.echo(_our_fault(error), err=True)
            ctx.exit(1)

    @staticmethod
    def _debug(ctx: click.Context) -> None:
        if ctx.params.get("debug"):
            click.echo(traceback.format_exc(), err=True, nl=False)


def _our_fault(error: Exception) -> str:
    with tempfile.NamedTemporaryFile("w", prefix="compress-", suffix=".log", delete=False, encoding="utf-8") as log:
        log.write(traceback.format_exc())
    what = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {what}; this is a fault of compress, the log is at {Path(log.name)}"


def _version(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if not asked:
        return
    from importlib import metadata

    try:
        click.echo(f"compress {metadata.version('compress-engine')}")
    except metadata.PackageNotFoundError:
        click.echo("compress, not installed but run from its folder")
    ctx.exit()


@click.group(
    cls=Verbs,
    examples=("compress init demo --target cpu -o pipeline.toml", "compress run pipeline.toml"),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
@click.option("--debug", is_flag=True, help="Show the traceback of a fault.")
def cli(debug: bool) -> None:
    """A transformer and a piece of hardware in, a verified smaller engine out."""


for _verb in (*running.VERBS, *measuring.VERBS, *profiling.VERBS, *looking.VERBS):
    cli.add_command(_verb)


def main() -> None:
    """Run the command line and exit."""
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"  # no line of source for users
    cli(prog_name="compress")
