"""The clock, two stand-alone files for any board: how long engines take, measured so that a busy machine bends nothing.

    python bench.py REFERENCE_FOLDER [ENGINE_FOLDER ...] --batch 1 --prompt 128 --generate 64 --threads 1 --device cpu

Beside it has to be `bench_<clock>.py` for the `clock` that each `engine.json` names, onnxruntime unless it names one.
Its `Opened(folder, manifest, args)` tells `versions` and whether it is a `decoder`, and returns a `caller(past, new)`.

Fresh processes load all engines, warm up and alternate blocks of runs of one engine with blocks of the others; the
first runs of a block, which find another engine's weights in the cache, are dropped.  On one CPU thread the clock is
that thread's CPU time, which other programs cannot stretch; elsewhere it is the wall.  `ratio` is time over the first
engine's time (0.5 = twice as fast), the geometric mean over processes, with the 95 % interval of Student's t.

    prefill   one run over the prompt, nothing cached
    decode    one new token per sequence after a past of `prompt` tokens
    request   prefill + generate * decode
    memory    host memory that a fresh process gains, at its peak, by loading the engine and serving a request
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

WARMUPS, DROP, KEEP, ROUNDS = 15, 3, 20, (5, 25)  # runs; runs; runs; fewest and most blocks of an engine
PREEMPTED, SPREAD, WIDTH, FEW = 1.15, 0.25, 0.10, 100  # wall / CPU; blocks; ratio's interval; runs: beyond = flagged
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571)  # t that 97.5 % are below, of 1, 2, .. degrees of freedom
HUGE_PAGES = "glibc.malloc.hugetlb=1"  # of GLIBC_TUNABLES, which the allocator reads as a process starts
REQUEST = ("batch", "prompt", "generate", "threads", "device", "huge_pages")
TEXT = {".json", ".py", ".txt", ".md", ".jinja"}  # suffixes of what is not the engine itself
Block = dict[str, list[float]]  # CPU and wall seconds of each kept run of a block


def fault(message: str, reason: object = "") -> NoReturn:
    """End with one line about what the user can mend (exit status 2)."""
    print(" ".join(f"bench: {message} {reason}".split("\n")[0].split()), file=sys.stderr)
    raise SystemExit(2)


def opener(folder: Path, args: argparse.Namespace) -> Callable[[], Any]:
    """Return what opens an engine on the device that was asked for; its runtime is imported when this returns."""
    try:
        manifest = json.loads((folder / "engine.json").read_text(encoding="utf-8"))
        file = Path(__file__).with_name(f"bench_{manifest.get('clock', 'onnxruntime')}.py")
        kind = runpy.run_path(str(file))["Opened"]
    except Exception as error:
        fault(f"{folder}: cannot be loaded as an engine:", error)

    def opened() -> Any:
        try:
            return kind(folder, manifest, args)
        except Exception as error:
            fault(f"{folder}: cannot be loaded as an engine:", error)

    return opened


def caller(engine: Any, folder: Path, args: argparse.Namespace, past: int, new: int) -> Callable[[], None]:
    """Return a call that runs `new` tokens per sequence after `past` cached ones; try it."""
    try:
        run: Callable[[], None] = engine.caller(past, new)
        run()
    except Exception as error:
        fault(f"{folder}: cannot run {args.batch} x {new} tokens after {past}:", error)
    return run


def time_blocks(calls: Sequence[Callable[[], None]], seconds: float) -> list[list[Block]]:
    """Time calls in alternating blocks, by call and round; calls that need over 5 times `seconds` get fewer runs."""
    lap = [time.perf_counter()]
    while len(lap) <= WARMUPS and (len(lap) < 3 or lap[-1] - lap[0] < seconds):
        for call in calls:
            call()
        lap.append(time.perf_counter())
    each, drop, keep = max(lap[-1] - lap[-2], 1e-6), DROP, KEEP  # seconds of one run of every call
    rounds = int(np.clip(seconds / each / (drop + keep), *ROUNDS))
    if 5 * seconds < each * rounds * (drop + keep):
        rounds, drop, keep = 3, 1, int(np.clip(5 * seconds / each / 3 - 1, 2, KEEP))
    blocks: list[list[Block]] = [[] for _ in calls]
    for r in range(rounds):
        for i in range(len(calls))[:: -1 if r % 2 else 1]:
            ticks = [(time.thread_time(), time.perf_counter())]
            for _ in range(drop + keep):
                calls[i]()
                ticks.append((time.thread_time(), time.perf_counter()))
            cpu, wall = np.diff(ticks[drop:], axis=0).T.tolist()
            blocks[i].append({"cpu": cpu, "wall": wall})
    return blocks


def worker_time(args: argparse.Namespace) -> dict[str, Any]:
    """Time all engines in this process."""
    openers = [opener(folder, args) for folder in args.folders]
    opened, ticks = [], [time.perf_counter()]
    for folder, opens in zip(args.folders, openers):  # noqa: B905
        opened.append((opens(), folder))
        ticks.append(time.perf_counter())
    decode = {"decode": (args.prompt, 1)} if args.generate and all(e.decoder for e, _ in opened) else {}
    phases = {"prefill": (0, args.prompt), **decode}
    blocks = {p: time_blocks([caller(*o, args, *at) for o in opened], args.seconds) for p, at in phases.items()}
    versions = {n: v for e, _ in opened for n, v in e.versions.items()}
    load = {"load_seconds": np.diff(ticks).tolist(), "load_average": os.getloadavg()[0]}
    return {**load, "versions": versions, "phases": blocks}


def worker_memory(args: argparse.Namespace) -> dict[str, Any]:
    """Load one engine in this process, run the largest steps of a request, and return the MiB gained at the peak."""
    status = Path("/proc/self/status")  # getrusage would report the peak of the process that started this one
    if not status.exists():
        return {"memory_mib": None}
    opens = opener(folder := args.folders[0], args)
    before = status.read_text(encoding="utf-8")
    caller(engine := opens(), folder, args, 0, args.prompt)
    if args.generate and engine.decoder:
        caller(engine, folder, args, args.prompt + args.generate - 1, 1)
    found = (("VmHWM", status.read_text(encoding="utf-8")), ("VmRSS", before))
    peak, start = (int(re.findall(rf"{field}:\s+(\d+) kB", text)[0]) / 1024 for field, text in found)
    return {"memory_mib": peak - start}


def spawn(args: argparse.Namespace, role: str, folders: Sequence[Path]) -> dict[str, Any]:
    """Run one worker in a fresh process and return what it measured."""
    print(f"progress: {role}", file=sys.stderr, flush=True)
    request = [f"--{n}={getattr(args, n)}" for n in (*REQUEST, "seconds")]
    command = [sys.executable, __file__, *map(str, folders), *request, f"--worker={role}"]
    given = [v for v in (os.environ.get("GLIBC_TUNABLES"), HUGE_PAGES) if v] if args.huge_pages else []
    around = {**os.environ, **({"GLIBC_TUNABLES": ":".join(given)} if given else {})}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=around)
    if done.returncode:
        raise SystemExit(done.returncode if done.returncode > 0 else f"bench: {role} died of signal {-done.returncode}")
    return dict(json.loads(done.stdout))


def medians(own: list[list[Block]], reference: list[list[Block]], clock: str) -> np.ndarray:
    """Return median ms [1 + processes, (own, reference)]: of all blocks, then of each process, an only one in parts."""
    pairs = [np.array([[np.median(b[clock]) for b in pair] for pair in zip(*p)]) for p in zip(own, reference)]  # noqa: B905
    parts = pairs if len(pairs) > 1 else np.array_split(pairs[0], min(3, len(pairs[0])))
    return np.array([np.median(p, axis=0) for p in (np.concatenate(pairs), *parts)]) * 1e3


def student(free: int) -> float:
    """Return the 97.5 % quantile of Student's t; beyond the table Abramowitz and Stegun's 26.7.5, to a thousandth."""
    return STUDENT[free - 1] if free <= len(STUDENT) else 1.960 + 2.372 / free + 2.823 / free**2 + 2.310 / free**3


def reach(count: int) -> float:
    """Return half the 95 % interval of a mean of `count` values, in their standard deviations."""
    return float(student(count - 1) / count**0.5)


def compare(found: np.ndarray) -> dict[str, float]:
    """Return the time and its ratio to the reference's, with the 95 % interval, of what `medians` found."""
    logs = np.log(found[1:, 0] / found[1:, 1])
    low, ratio, high = np.exp(logs.mean() + reach(len(logs)) * logs.std(ddof=1) * np.array([-1, 0, 1])).tolist()
    return {"ms": found[0, 0], "ratio": ratio, "ratio_low": low, "ratio_high": high}


def figures(blocks: list[Block], found: np.ndarray, clock: str) -> dict[str, Any]:
    """Return one engine's figures of one phase, from all its blocks and what `medians` found in them."""
    cpu, wall = (np.concatenate([b[c] for b in blocks]) * 1e3 for c in ("cpu", "wall"))
    low, middle, high = np.quantile([np.median(b[clock]) for b in blocks], (0.1, 0.5, 0.9))
    spread, stretch, ratios = float((high - low) / middle), np.median(wall) / np.median(cpu), compare(found)
    width = (ratios["ratio_high"] - ratios["ratio_low"]) / ratios["ratio"]
    checks = {
        f"shared: the wall took {stretch:.2f} times the CPU time": clock == "cpu" and stretch > PREEMPTED,
        f"noisy: blocks spread over {spread:.0%}, the ratio over {width:.0%}": spread > SPREAD or width > WIDTH,
        f"few: {len(wall)} runs": len(wall) < FEW,
    }
    return {
        **ratios, "cpu_ms": float(np.median(cpu)), "wall_ms": float(np.median(wall)),
        "wall_p10_ms": float(np.quantile(wall, 0.1)), "spread": spread, "runs": len(wall),
        "flags": [text for text, fails in checks.items() if fails],
    }  # fmt: skip


def describe(i: int, args: argparse.Namespace, timed: list[dict[str, Any]], clock: str) -> dict[str, Any]:
    """Return everything measured of engine `i`."""
    runs = {p: [t["phases"][p] for t in timed] for p in timed[0]["phases"]}  # phase -> process -> engine -> round
    found = {p: medians([r[i] for r in rs], [r[0] for r in rs], clock) for p, rs in runs.items()}
    phases = {p: figures([b for r in runs[p] for b in r[i]], m, clock) for p, m in found.items()}
    request = compare(found["prefill"] + args.generate * found.get("decode", np.zeros(2)))
    tokens = args.batch * (args.generate if "decode" in phases else args.prompt)  # generated, or else read
    sizes = [p.stat().st_size for p in args.folders[i].rglob("*") if p.is_file() and p.suffix not in TEXT]
    return {
        "folder": str(args.folders[i]), "decode": None, **phases,
        "request": request, "tokens_per_second": tokens / request["ms"] * 1e3,
        "load_seconds": float(np.median([t["load_seconds"][i] for t in timed])),
        "file_mib": sum(sizes) / 2**20, **spawn(args, "memory", [args.folders[i]]),
    }  # fmt: skip


def unhuge() -> list[str]:
    """Return why processes do not get the huge pages that they ask for."""
    libc, version = platform.libc_ver()
    if libc != "glibc" or tuple(map(int, version.split(".")[:2])) < (2, 35):
        return [f"no huge pages: they need glibc 2.35 or later, here is {libc or 'another libc'} {version}".rstrip()]
    switch = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    off = not switch.exists() or "[never]" in switch.read_text(encoding="utf-8")
    return [f"no huge pages: {switch} says never"] if off else []


def bench(args: argparse.Namespace) -> dict[str, Any]:
    """Measure all engines and return the figures that `--json` writes."""
    clock = "cpu" if args.threads == 1 and args.device == "cpu" else "wall"
    timed = [spawn(args, "time", args.folders) for _ in range(args.processes)]
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    cpu = re.findall(r"^(?:model name|Model)[ \t]*: (.+)$", info, re.MULTILINE)
    load, cores = max(t["load_average"] for t in timed), os.cpu_count() or 1
    busy = [f"loaded: load average {load:.1f} on {cores} cores"] if load > cores else []
    busy += unhuge() if args.huge_pages else []
    few = [f"few runs: in {args.processes} of the 3 processes that intervals need"] if args.processes < 3 else []
    return {
        "format": 1, "request": {n: getattr(args, n) for n in REQUEST if n != "huge_pages" or args.huge_pages},
        "clock": "thread CPU time" if clock == "cpu" else "wall time", "cache": "interleaved blocks",
        "processes": args.processes, "load_average": load,
        "machine": {"cpu": cpu[0] if cpu else platform.machine(), "cores": cores, "system": platform.platform()},
        "versions": {"python": platform.python_version(), "numpy": np.__version__, **timed[0]["versions"]},
        "engines": [describe(i, args, timed, clock) for i in range(len(args.folders))],
        "flags": busy + few,
    }  # fmt: skip


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="ENGINE_FOLDER")
    numbers = {"batch": 1, "prompt": 128, "generate": 64, "threads": 1, "huge_pages": 0, "processes": 6}
    for name, default in {**numbers, "seconds": 1.0}.items():  # to aim at, per phase and process
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here instead of printing them")
    parser.add_argument("--worker", choices=("time", "memory"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    text = json.dumps({"time": worker_time, "memory": worker_memory}.get(args.worker, bench)(args), indent=2)
    args.json.write_text(text, encoding="utf-8") if args.json else print(text)


if __name__ == "__main__":
    main()
