"""What every verb is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


class Exemplary(click.Command):
    """A command whose help ends with examples.

    Args:
        examples: command lines, as typed.
    """

    def __init__(self, *args: Any, examples: tuple[str, ...] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        with formatter.section("Examples"):
            formatter.write("".join(f"{'':{formatter.current_indent}}{line}\n" for line in self.examples))


def verb(*examples: str, name: str | None = None) -> Callable[[Callable[..., Any]], Exemplary]:
    """Make a command of a function; its docstring is the help."""
    return click.command(name, cls=Exemplary, examples=examples)
