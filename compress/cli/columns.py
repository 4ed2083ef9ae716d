"""Plain tables for terminals and pipes."""

from __future__ import annotations

from collections.abc import Sequence


def columns(rows: Sequence[Sequence[object]], right: Sequence[int] = (), indent: str = "") -> str:
    """Return rows as aligned text, two spaces between the columns.

    Args:
        rows: as many cells each; the first row may be the header.
        right: the columns whose cells are flush right.
        indent: put before every line.
    """
    cells = [[str(c) for c in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = (
        "  ".join(c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    )
    return "\n".join(f"{indent}{line}".rstrip() for line in lines)


def size(mib: float) -> str:
    """Return a size in MiB, or GiB when large."""
    return f"{mib:.1f} MiB" if mib < 1024 else f"{mib / 1024:.1f} GiB"


def duration(seconds: float) -> str:
    """Return seconds as seconds or minutes."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
