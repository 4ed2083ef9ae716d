"""What a sweep tells: lines for the terminal, and a page with quality against measured time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compress.budgets import TIMES, amount
from compress.report import words
from compress.report.html import Html, document, part, table, tag
from compress.report.scatter import Mark, Series, scatter
from compress.report.sections import machine
from compress.sweep.points import CHOSEN

Result = Mapping[str, Any]

_WAYS = {
    CHOSEN: "chosen", "dense": "dense", "uniform": "same in all layers", "greedy": "greedy", "random": "by chance",
}  # fmt: skip
_PHASES = {
    "prefill_ms": "reading the prompt", "decode_ms": "writing one token", "request_ms": "a whole request",
}  # fmt: skip


def lines(content: Mapping[str, Any]) -> list[str]:
    """Return a line a point: what its limits came to, and its quality."""
    return [f"{r['told']}: {_line(r)}" for r in content["points"]]


def page(content: Mapping[str, Any]) -> str:
    """Return the page of `sweep.json`."""
    every = content["points"]
    targets = list(dict.fromkeys(r["target"] for r in every))
    lost = [f"{r['told']} failed: {r['error']}" for r in every if r["state"] == "failed"]
    return document(
        f"{content['name']}: sweep",
        tag("h1", f"{content['name']}: sweep"),
        tag("p", " · ".join(str(v) for v in _subject(content)), cls="soft"),
        tag("p", _verdict(every), cls="lead"),
        *(tag("p", text, cls="note") for text in lost),
        *(_target(t, [r for r in every if r["target"] == t], content["baselines"]) for t in targets),
        machine(content),
        tag("footer", "Written by compress on ", content["created"], ". The same figures for programs: ",
            tag("code", "sweep.json"), "."),
    )  # fmt: skip


def _subject(content: Mapping[str, Any]) -> list[Any]:
    model = content.get("model") or {}
    return [model[k] for k in ("source", "family", "task") if model.get(k)]


def _verdict(every: Sequence[Result]) -> str:
    """Return in a sentence or two how many points kept their budgets."""
    done = [r for r in every if r["state"] == "done" and not r["estimated"]]
    kept, sure = [r for r in done if r["met"]], [r for r in done if all(x["resolved"] for x in r["limits"].values())]
    said = f"{len(kept)} of {len(done)} engines keep their budgets." if done else "No engine is done."
    if len(sure) < len(done):
        said += f" Of {len(done) - len(sure)}, the time is not resolvable within 1 % on this machine."
    if waiting := sum(r["state"] == "waiting" for r in every):
        said += f" {waiting} points are still to be made."
    return said


def _line(result: Result) -> str:
    if result["state"] != "done":
        return str(result.get("error") or result["state"])
    told = [f"{cost.removesuffix('_ms')} {_limit(cost, x)}" for cost, x in result["limits"].items()]
    if quality := result["quality"]:
        dense = result["dense_quality"]
        was = f" (dense {words.amount(dense, dense['value'])})" if dense else ""
        told.append(f"{quality['name']} {words.amount(quality, quality['value'])}{was}")
    return "; ".join(told)


def _limit(cost: str, told: Mapping[str, Any]) -> str:
    """Return what a limit came to: measured with its interval, and what was predicted."""

    def one(value: float) -> str:
        return f"{value:.3g}x" if told["share"] else amount(cost, value)

    predicted = f"{one(told['predicted'])} predicted" if "predicted" in told else ""
    if "measured" in told:
        between = f"{one(told['measured'])} ({one(told['low'])} to {one(told['high'])})"
        said = f"{between}, {predicted}" if predicted else between
    elif cost in TIMES:
        said = f"{predicted} (estimated)" if predicted else "not measured"
    else:
        said = predicted.replace(" predicted", "") or "not told"
    verdict = {True: "", False: ": missed", None: ""}[told["met"]]
    doubt = "" if told["resolved"] else ", not resolvable on this machine"
    return f"{said}{doubt}{verdict}"


# -- one target -------------------------------------------------------------------------------------------------


def _target(name: str, every: Sequence[Result], baselines: Sequence[str]) -> Html:
    """Return a target's plots and table."""
    done = [r for r in every if r["state"] == "done" and r["quality"]]
    limited = [c for c in TIMES if any(c in r["limits"] for r in done)]
    costs = limited or [c for c in ("request_ms",) if any(c in r["measured"] for r in done)]
    estimated = any(r["estimated"] for r in every)
    about = "Quality against the time as a share of the dense engine's, timed in turns with it; lines across are 95 % "
    about += "intervals, of the paired difference where quality has one. Hollow points are predictions."
    if estimated:
        about = "Times are estimated by arithmetic from a datasheet, not measured; no engine was made."
    plots = [tag("figure", _plot(done, cost, baselines), cls="card") for cost in costs if _marks(done, cost)]
    heads = ["Budget", "How", "What it came to", "Parameters", "Engine file", "Quality", "Change", "Engine"]
    rows = [_row(r) for r in every]
    title = f"{name}: estimated" if estimated else name
    return part(title, about, *plots, tag("div", table(heads, rows), cls="card"), *_loops(every))


def _plot(done: Sequence[Result], cost: str, baselines: Sequence[str]) -> Html:
    ways = list(dict.fromkeys(r["way"] for r in done))
    series = [
        Series(
            name=_WAYS[way], colour=list(_WAYS).index(way), joined=True,
            marks=_marks([r for r in done if r["way"] == way], cost),
        )
        for way in ways
    ]  # fmt: skip
    dense = next((r["dense_quality"] for r in done if r["dense_quality"]), None)
    if dense and "dense" in baselines:
        mark = Mark(x=1.0, y=dense["value"], more=f"dense: {words.amount(dense, dense['value'])}")
        series.append(Series(name="dense", marks=[mark], colour=1))
    metric = done[0]["quality"]["name"]
    label = f"{words.metric_name(metric)} ({words.direction(metric)})"
    return scatter(series, f"time of {_PHASES[cost]}, as a share of the dense engine's", label)


def _marks(done: Sequence[Result], cost: str) -> list[Mark]:
    found = []
    for r in done:
        time, now = r["measured"].get(cost), r["quality"]["value"]
        whole = time["dense_ms"] if time else r["predicted_dense"].get(cost)
        guess = r["predicted"][cost] / whole if whole and cost in r["predicted"] else None
        if time is None and guess is None:
            continue
        about = {"y": now, "up": _spread(r), "more": f"{r['told']}: {_line(r)}"}
        if time is None:
            found.append(Mark(x=guess or 0.0, solid=False, **about))
        else:
            found.append(Mark(x=time["ratio"], across=(time["low"], time["high"]), guess=guess, **about))
    return found


def _spread(result: Result) -> tuple[float, float] | None:
    """Return the interval of the quality: of its paired difference to the dense model's, where there is one."""
    metric = result["delta"] or result["quality"]
    low, high = metric.get("low"), metric.get("high")
    if low is None or high is None:
        return None
    now = result["quality"]["value"]
    return now + low - metric["value"], now + high - metric["value"]


def _row(result: Result) -> list[Any]:
    budget = result["told"].removeprefix(f"{result['target']}, ").removesuffix(f", {result['way']}")
    head = [budget, _WAYS[result["way"]]]
    if result["state"] != "done":
        return [*head, tag("span", _line(result), cls="bad"), *[""] * 5]
    kept = {True: "good", False: "bad", None: "same"}[result["met"]]
    limits = [tag("div", f"{c.removesuffix('_ms')} {_limit(c, x)}") for c, x in result["limits"].items()]
    metric, was, delta = result["quality"], result["dense_quality"], result["delta"]
    sizes, folder = result["sizes"].get("file_mib"), result["engine"]
    change = words.moved(delta, was) if delta else None
    place = f"{result['name']}/{folder}"
    return [
        *head,
        tag("div", *limits, cls=kept),
        words.parameters(result["parameters"][1]),
        words.mib(sizes[1]) if sizes else "",
        words.amount(metric, metric["value"]) if metric else "",
        tag("span", change.text, cls=change.tone) if change else "",
        tag("a", tag("code", place), href=place) if folder else tag("small", "no engine"),
    ]


def _loops(every: Sequence[Result]) -> list[Html]:
    """Return the rounds of the closed loops that needed more than one."""
    found = []
    for r in every:
        rounds = [x for x in r.get("rounds") or () if x.get("figures")]
        if len(rounds) < 2:
            continue
        heads = ["Round", "Cost", "Predicted", "Measured", "95 % interval", "Limit", "Sums corrected by", ""]
        rows = [
            [x["round"], cost.removesuffix("_ms"), *(amount(cost, f[k]) for k in ("predicted", "measured")),
             f"{f['low']:.4g} to {f['high']:.4g}", amount(cost, f["limit"]), f"{f['offset']:+.3g} ms",
             "met" if x["met"] else "missed"]
            for x in rounds for cost, f in x["figures"].items()
        ]  # fmt: skip
        found.append(
            tag("details", tag("summary", f"{r['told']}: {len(rounds)} rounds on the clock"), table(heads, rows))
        )
    return found
