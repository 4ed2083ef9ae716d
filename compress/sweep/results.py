"""What a point came to, out of its run's report: predicted and measured costs, verdicts on the budget, quality."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress.budgets import TIMES, Limit
from compress.measure import Figures, Measurement
from compress.report.page import main_metric
from compress.report.timing import latency_of
from compress.sweep.clock import HALF, margin, time_of
from compress.sweep.points import Point

TOLERANCE = 0.02  # how far over its budget the upper end of a time's interval may be, relative

Result = dict[str, Any]  # JSON throughout; `of` says what it holds


def begun(point: Point) -> Result:
    """Return what is known of a point before it ran."""
    return {
        "name": point.name, "told": point.told, "target": point.target.name, "budget": dict(point.budget),
        "way": point.way, "estimated": point.estimated, "state": "waiting",
    }  # fmt: skip


def failed(point: Point, error: str) -> Result:
    """Return the result of a point that failed."""
    return {**begun(point), "state": "failed", "error": error}


def of(point: Point, report: Mapping[str, Any]) -> Result:
    """Return the result of a point whose run has ended.

    Args:
        point: what was asked for.
        report: content of the run's `report.json`.

    Returns:
        Beside what `begun` tells:
        predicted: costs of the plan by cost, as the pass that chose it recorded them; `predicted_dense` likewise.
        rounds: of the closed loop, where it recorded them.
        measured: by time: `ms`, `dense_ms`, `ratio` to it with `low` and `high`; empty without an engine.
        sizes: `file_mib` and `memory_mib` of the engine, each [dense, own].
        parameters: [dense, own].
        limits: by cost: `limit` and `predicted`, of times also `measured`, `low` and `high`, all in the unit of the
            budget (shares of the dense model, or ms); `resolved`; `met`, None where neither a clock nor arithmetic can
            tell.
        met: whether all limits are.
        quality: the metric by which models are compared, of the engine where there is one; `dense_quality`; `delta`.
        engine: its folder, relative to the point's.
    """
    solution = _recorded(report, "solution")
    predicted, dense = (dict(solution.get(k) or {}) for k in ("predicted", "dense"))
    engine: Mapping[str, Any] = next(iter(report.get("engines", ())), {})
    latency = latency_of(engine)
    limits = {x.cost: _limit(x, predicted, dense, latency) for x in point.limits}
    known = [told["met"] for told in limits.values()]
    was, now, delta = main_metric(report)
    shipped = {m["name"]: m for m in report["quality"].get("engine", ())}
    model = report["model"]
    return {
        **begun(point),
        "state": "done",
        "predicted": predicted,
        "predicted_dense": dense,
        "rounds": _recorded_all(report, "rounds"),
        "measured": _measured(latency),
        "sizes": _sizes(latency),
        "parameters": [model["parameters"], model["parameters_left"]],
        "limits": limits,
        "met": None if None in known else all(known),
        "quality": shipped.get(now["name"], now) if now else None,
        "dense_quality": was,
        "delta": delta,
        "engine": engine.get("folder"),
    }


def _limit(
    limit: Limit, predicted: Mapping[str, float], dense: Mapping[str, float], latency: Measurement | None
) -> dict[str, Any]:
    """Return one limit beside what it came to, in its own unit."""
    share = limit.share is not None
    told: dict[str, Any] = {"limit": limit.share if share else limit.value, "share": share, "resolved": True}
    whole = dense.get(limit.cost) or dense.get("weights_mib", 0.0) + dense.get("kv_mib", 0.0)
    if limit.cost in predicted:
        told["predicted"] = predicted[limit.cost] / whole if share and whole else predicted[limit.cost]
    before, time = (time_of(latency.engines[k], limit.cost) if latency and limit.timed else None for k in (0, -1))
    if before and time:
        scale = 1.0 if share else before.ms
        told |= {"measured": time.ratio * scale, "low": time.ratio_low * scale, "high": time.ratio_high * scale}
        told["resolved"] = margin(time) <= HALF
        reached = told["high"] if told["resolved"] else told["measured"]
        return {**told, "met": reached <= (1 + TOLERANCE) * told["limit"]}
    sure = not limit.timed and "predicted" in told
    return {**told, "met": told["predicted"] <= told["limit"] * (1 + 1e-9) if sure else None}


def _measured(latency: Measurement | None) -> dict[str, Any]:
    if latency is None or len(latency.engines) < 2:
        return {}
    first, last = latency.engines[0], latency.engines[-1]
    found = {}
    for cost in TIMES:
        before, now = time_of(first, cost), time_of(last, cost)
        if before and now:
            found[cost] = {
                "ms": now.ms, "dense_ms": before.ms, "ratio": now.ratio, "low": now.ratio_low, "high": now.ratio_high,
            }  # fmt: skip
    return found


def _sizes(latency: Measurement | None) -> dict[str, Any]:
    if latency is None:
        return {}
    ends: tuple[Figures, Figures] = (latency.engines[0], latency.engines[-1])
    return {key: [getattr(e, key) for e in ends] for key in ("file_mib", "memory_mib")}


def _recorded(report: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return the last of what a step recorded under a name."""
    every = _recorded_all(report, name)
    return every[-1] if every else {}


def _recorded_all(report: Mapping[str, Any], name: str) -> list[Any]:
    return next((s["measured"][name] for s in report["steps"] if name in (s.get("measured") or {})), [])
