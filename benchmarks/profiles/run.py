"""Predicted against measured latency of whole heterogeneous engines, beside counts of operations and of parameters.

    python -m benchmarks.profiles.run --out benchmarks/profiles/results.json
    python -m benchmarks.profiles.run --quick                 # a minute, to see that it works

A killed run goes on where its profiles were; `--profile` elsewhere begins anew.

A profile is taken of all parts; whole models of one seed fit what sums of parts miss, and whole models of another seed,
none of them among the first, are predicted and then measured, four times each.  A line through the operations, or the
parameters, of the first set predicts the second likewise.  Then all parts are taken anew, into a second profile, which
has to agree with the first within what both state: the spread of each part, and how far the machine strays.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compress.contracts import Target
from compress.measure import digits
from compress.pipeline.console import Console
from compress.profiling import Wanted
from profiles import Choice, Profile, _planning, read
from profiles._fit import fit
from profiles._taking import AT_ONCE, Session
from profiles.measure import Measure
from profiles.roofline import operations

FIT_SEED, TEST_SEED = 0, 1
TAKES = 4  # of each predicted model: what a machine shared with strangers does to one take is not the profile's error
MEDIAN, WORST, TAU = 0.03, 0.10, 0.9  # what predictions are to reach
FULL: dict[str, Any] = {
    "model": "demo", "target": Target(prompt=32, generate=32, huge_pages=True),
    "requests": ((1, 128), (4, 32), (4, 128)),
    "kv_heads": (1,), "neurons": (256, 512), "precisions": ("fp32", "int4-g32", "int8-dynamic"),
    "models": 12, "seconds": 0.35, "processes": 3, "seed": FIT_SEED,
}  # fmt: skip
QUICK: dict[str, Any] = {**FULL, "requests": (), "neurons": (256,), "kv_heads": (), "precisions": ("fp32",),
                         "models": 5, "seconds": 0.2, "processes": 1}  # fmt: skip
Count = Callable[[Choice, int, int, int], float]
COUNTS: dict[str, Count] = {
    "operations": operations,
    "parameters": lambda choice, *_: float(choice.part.parameters),
}


def kendall(a: Sequence[float], b: Sequence[float]) -> float:
    """Return Kendall's tau: pairs in the same order less those in the other, as a share of all."""
    x, y = (np.sign(np.subtract.outer(v, v)) for v in (a, b))
    above = np.triu_indices(len(a), 1)
    return float((x * y)[above].mean())


def errors(predicted: Sequence[float], measured: Sequence[float]) -> dict[str, float]:
    """Return how far predictions are off, as shares of what was measured, and how well they order."""
    off = np.abs(np.array(predicted) / np.array(measured) - 1)
    return {"median": float(np.median(off)), "worst": float(off.max()), "tau": kendall(predicted, measured)}


def counted(count: Count, parts: Sequence[Choice], phase: str, batch: int, length: int) -> float:
    """Return a count of a whole model in a phase."""
    new, past = (length, 0) if phase == "prefill" else (1, length)
    return sum(count(c, batch, new, past) for c in parts)


def measured(
    wanted: Wanted, profile: Profile, models: Sequence[tuple[Choice, ...]]
) -> list[dict[tuple[str, int, int], float]]:
    """Return what whole models take, ms by phase, batch and length, on the scale of the profile."""
    plan, known = _planning.plan(wanted), len(profile.document.wholes)
    with tempfile.TemporaryDirectory() as scratch:
        session = Session(wanted, plan, profile.document, None, Path(scratch))
        for start in range(0, len(models), AT_ONCE):
            for request in plan.requests:
                session.measure_wholes(request, models[start : start + AT_ONCE])
            session.forget()
    found = {w.parts: {t.key: t.ms for t in w.times} for w in session.document.wholes[known:]}
    places = {p.choice: i for i, p in enumerate(profile.document.parts)}
    return [dict(found[tuple(places[c] for c in (profile.base, *m))]) for m in models]


def judge(profile: Profile, models: Sequence[tuple[Choice, ...]], takes: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Return the errors of each predictor, by phase, batch and length, and how far two takes are apart."""
    every = [p.choice for p in profile.document.parts]
    rows: dict[str, Any] = {}
    for key in takes[0][0]:
        phase, batch, length = key
        truth = [float(np.median([take[i][key] for take in takes])) for i in range(len(models))]
        target = Target(batch=batch, prompt=length, generate=1)
        predicted = [profile.predict(m, profile.base, target)[f"{phase}_ms"] for m in models]
        row = {"profile": errors([p.ms for p in predicted], truth)}
        row["profile"]["inside"] = float(np.mean([p.low <= t <= p.high for p, t in zip(predicted, truth, strict=True)]))
        summed = [sum(profile.time(c, phase, batch, length).ms for c in (profile.base, *m)) for m in models]
        row["sum of parts alone"] = errors(summed, truth)
        for name, count in COUNTS.items():
            known = [
                (counted(count, [every[i] for i in w.parts], phase, batch, length), t.ms)
                for w in profile.document.wholes
                for t in w.times
                if t.key == key
            ]
            line = fit(*zip(*known, strict=True))
            guessed = [line.at(counted(count, (profile.base, *m), phase, batch, length)) for m in models]
            row[name] = errors(guessed, truth)
        apart = [abs(a[key] / b[key] - 1) for a, b in zip(takes[0], takes[-1], strict=True)]
        rows[f"{phase} {batch} x {length}"] = {**row, "repeat": float(np.median(apart))}
    return rows


def agreement(first: Profile, second: Profile) -> dict[str, dict[str, float]]:
    """Return how far two profiles are apart by phase: median and worst, and the share within what both state."""
    found: dict[str, list[tuple[float, bool]]] = {}
    for part in second.document.parts:
        for t in part.times:
            a, b = (p.time(part.choice, *t.key) for p in (first, second))
            allowed = float(np.hypot(np.hypot(a.spread, b.spread), first.line(*t.key).drift * a.ms))
            found.setdefault(t.phase, []).append((abs(a.ms / b.ms - 1), abs(a.ms - b.ms) <= allowed))
    return {
        phase: {"median": float(np.median(off)), "worst": max(off), "inside": float(np.mean(inside))}
        for phase, (off, inside) in ((p, zip(*pairs, strict=True)) for p, pairs in found.items())
    }


def lines(rows: dict[str, Any], agreed: dict[str, dict[str, float]]) -> list[str]:
    """Return the results as a table, and what they come to."""
    found = ["| phase, batch x tokens | predictor | median error | worst | Kendall tau | inside the 95 % interval |"]
    found.append("|---|---|---|---|---|---|")
    met = []
    for key, row in rows.items():
        for name, e in row.items():
            if name == "repeat":
                found.append(f"| {key} | (two takes of the same engines) | {e:.1%} | | | |")
                continue
            inside = f"{e['inside']:.0%}" if "inside" in e else ""
            figures = f"{e['median']:.1%} | {e['worst']:.1%} | {digits(e['tau'], 2)} | {inside}"
            found.append(f"| {key} | {name} | {figures} |")
        own = row["profile"]
        met.append(own["median"] <= max(MEDIAN, 2 * row["repeat"]) and own["worst"] <= WORST and own["tau"] >= TAU)
    goal = f"median at most {MEDIAN:.0%} or twice the repeat's, worst {WORST:.0%}, tau {TAU}"
    found += ["", f"{goal}: met by {sum(met)} of {len(met)}"]
    for phase, e in agreed.items():
        told = f"{e['median']:.1%} apart in the median, {e['worst']:.1%} at most"
        found.append(f"two profiles, {phase}: {told}; {e['inside']:.0%} of the parts agree within what both state")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--profile", type=Path, default=Path("runs/benchmark-profile.json"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--models", type=int, default=14, help="whole models that are predicted")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    wanted = Wanted(**(QUICK if args.quick else FULL))
    args.profile.parent.mkdir(parents=True, exist_ok=True)
    report = Console(args.profile.with_suffix(".log"))
    Measure().take(wanted, args.profile, report)
    profile, plan = read(args.profile), _planning.plan(wanted)
    seen = set(_planning.wholes(plan, wanted.models, FIT_SEED))
    models = [m for m in _planning.wholes(plan, 10 * args.models, TEST_SEED) if m not in seen][: args.models]
    assert isinstance(profile, Profile)
    takes = [measured(wanted, profile, models) for _ in range(2 if args.quick else TAKES)]
    rows = judge(profile, models, takes)
    second = args.profile.with_suffix(".second.json")
    Measure().take(dataclasses.replace(wanted, models=0), second, report)
    agreed = agreement(profile, read(second))
    for line in lines(rows, agreed):
        report.say(line)
    if args.out:
        document = profile.document.model_dump(mode="json", include={"machine", "taken"})
        parts = [[str(c) for c in m] for m in models]
        told = [[{" ".join(map(str, key)): ms for key, ms in each.items()} for each in take] for take in takes]
        content = {**document, "models": parts, "measured": told, "rows": rows, "two profiles": agreed}
        args.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
