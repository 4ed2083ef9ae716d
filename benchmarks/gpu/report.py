"""Tables from the results of a run: Markdown; what was not run is called so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from benchmarks._ledger import Row
from benchmarks.gpu import plan
from benchmarks.gpu.plan import DEMO, Turns, Way
from compress.measure import digits

GOAL = 2e-2  # of the largest output, in fp16
NOT_RUN = "not run"


def render(setup: Row, rows: Mapping[str, Row]) -> str:
    """Return the page of some results."""
    turns = plan.turns(quick=setup["quick"])
    libraries = ", ".join(f"{n} {v}" for n, v in setup["libraries"].items())
    parts = [
        [f"# {setup['gpu']}, compute capability {setup['capability']}", "", f"{libraries}; Python {setup['python']}."],
        ["## Engines of the demo model", "", *engines(rows, plan.ways(quick=setup["quick"])[DEMO])],
        *(clock(rows, t) for t in turns),
        ["## The kit", "", kit(rows.get("kit"))],
    ]
    return "\n\n".join("\n".join(p) for p in parts) + "\n"


def engines(rows: Mapping[str, Row], ways: Iterable[Way]) -> list[str]:
    """Return a row for each engine of the demo model, beside what torch in float32 says of the same weights."""
    head = "engine | plan runs as it came | largest difference | of the largest output | equal argmax | "
    head += "perplexity (95 %) | torch's"
    lines = []
    for way in ways:
        row = rows.get(f"engine/{DEMO}/{way.name}")
        if row is None or "failed" in row:
            lines.append([way.name, *[""] * 5, row["failed"] if row else NOT_RUN])
            continue
        logits = row["parity"]["logits"]
        share = logits["difference"] / logits["magnitude"]
        met = "" if way.precision != "fp16" else ", met" if share <= GOAL else f", beyond {GOAL:g}"
        torch = rows.get(f"torch/{way.change or 'dense'}")
        lines.append([
            way.name, loaded(row, way), digits(logits["difference"]), f"{digits(share, 2)}{met}",
            f"{row['parity'].get('agreement', 1.0):.1%}", _interval(row["perplexity"]),
            digits(torch["perplexity"][0], 5) if torch else NOT_RUN,
        ])  # fmt: skip
    return table(head.split(" | "), lines)


def loaded(row: Row, way: Way) -> str:
    """Return whether the plan that was built ahead ran as it came."""
    if way.runtime not in plan.FLAVOURS:
        return "-"
    return f"built anew: {row['rebuilt']}" if row["rebuilt"] else "yes"


def clock(rows: Mapping[str, Row], turns: Turns) -> list[str]:
    """Return the times of engines in turns: ms, and how many times as fast as the first, with the 95 % interval."""
    batch, prompt = turns.request
    model = "the demo model" if turns.model == DEMO else f"a random Llama, {turns.model} wide"
    title = [f"## {turns.about}: {model}, batch {batch}, prompt {prompt}", ""]
    row = rows.get(turns.key)
    if row is None or "failed" in row:
        return [*title, row["failed"] if row else f"{NOT_RUN.capitalize()}."]
    lines = []
    for way in turns.ways:
        found, engine = row["rows"].get(way.name), rows.get(f"engine/{turns.model}/{way.name}", {})
        used = "; ".join(engine.get("used", ())) or "-"
        if found is None:
            lines.append([way.name, *[""] * 3, engine.get("failed", NOT_RUN), ""])
        else:
            times = [_time(found.get(phase)) for phase in ("prefill", "decode", "request")]
            lines.append([way.name, *times, digits(found["mib"][0]), used])
    graph = row["versions"].get("decode")
    told = f"{row['clock']}{f'; TensorRT decodes {graph}' if graph else ''}."
    flags = [f"Caution: {flag}." for flag in row["flags"]]
    return [*title, *table(["engine", "prefill", "decode", "request", "MiB", "kernels used"], lines), "", told, *flags]


def kit(row: Row | None) -> str:
    """Return what the kit found, in a line."""
    if row is None:
        return f"{NOT_RUN.capitalize()}."
    return f"{row['state']}: {row['why']}." if row.get("why") else f"{row['state']}; its results were taken back."


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """Return a Markdown table."""
    rule = "|".join("---" for _ in head)
    return [f"| {' | '.join(head)} |", f"|{rule}|", *(f"| {' | '.join(cells)} |" for cells in lines)]


def _interval(found: Sequence[float]) -> str:
    value, low, high = (digits(v, 5) for v in found)
    return f"{value} ({low} to {high})"


def _time(found: Sequence[float] | None) -> str:
    if found is None:
        return "-"
    ms, ratio, low, high = found
    return f"{digits(ms)} ms, {digits(1 / ratio)}x ({digits(1 / high)} to {digits(1 / low)})"
