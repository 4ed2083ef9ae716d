"""What each pass is worth on the engine, on the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress.gain import Factor
from compress.report.html import Html, part, table, tag

_COLUMNS = {"request_speedup": "Request", "prefill_speedup": "Prefill", "decode_speedup": "Decode", "smaller": "Files"}
_TONES = {"pays": "good", "neutral": "same", "costs": "bad"}


def gains(content: Mapping[str, Any]) -> Html | None:
    """Return a row for each pass, those that were left out among them; None where nobody asked."""
    found = content.get("gains") or []
    rows = [[_name(row), _verdict(row), *(_factor(row, name) for name in _COLUMNS), _expected(row)] for row in found]
    about = "The engine before and after each pass, timed in turns on the first target: how many times as fast, or as "
    about += "small, the second is; in brackets the 95 % interval. A pass pays that makes a request clearly faster, or "
    about += "files smaller at the same speed; the same graph takes the same time and is not measured."
    head = ["Pass", "Worth", *_COLUMNS.values(), "Expected"]
    return part("What each pass is worth", about, tag("div", table(head, rows), cls="card")) if rows else None


def told(row: Mapping[str, Any]) -> str:
    """Return the worth of a pass in a line."""
    said = row["gain"]["told"] if row["gain"] else "-"
    return said if row["kept"] else f"left out, {said}"


def _name(row: Mapping[str, Any]) -> str:
    return str(row["name"]) if row["kept"] else f"{row['name']} (left out)"


def _verdict(row: Mapping[str, Any]) -> Any:
    worth = row["gain"]
    if not worth:
        return "-"
    more = "; ".join([*([worth["why"]] if worth["why"] else []), *worth.get("kernels", ())])
    why = tag("small", more) if more else None
    return tag("span", tag("span", worth["verdict"], cls=_TONES[worth["verdict"]]), " " if why else None, why)


def _factor(row: Mapping[str, Any], name: str) -> str:
    found = row["gain"]["factors"].get(name) if row["gain"] else None
    return str(Factor(**found)).replace(" times", "x") if found else "-"


def _expected(row: Mapping[str, Any]) -> str:
    wanted = ", ".join(f"{_COLUMNS[n].lower()} {value:g}x" for n, value in (row["expected"] or {}).items())
    return wanted + ("; missed" if row["missed"] else "") if wanted else ("missed" if row["missed"] else "-")
