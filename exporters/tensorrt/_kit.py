"""Prove and time this engine on its target: python kit.py.  Needs numpy, torch and TensorRT or TensorRT-RTX, no more.

The folder is complete: the plan is built anew from the ONNX graph where it does not fit this machine, its outputs are
compared with the expected ones of `cases.npz`, the clock (`bench.py`) times it, and `kit-results.json` takes what was
found, for `compress evaluate FOLDER --import FOLDER/kit-results.json` on the machine where the engine was made.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import json
import platform
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
RESULTS, LOCAL = "kit-results.json", "local"


class Refused(Exception):
    """The builder does not take the graph: where, and what it said."""

    def __init__(self, text: str, node: str = "", operator: str = "") -> None:
        super().__init__(text)
        self.told = {"text": text, "node": node, "operator": operator}


def build(job: Mapping[str, Any], flavour: str, folder: Path, name: str) -> dict[str, Any]:
    """Build the plan `<name>.plan` of a folder's graph and return what is to be known of it.

    Args:
        job: the content of `build.json`: graph, profiles, flags and compute capabilities.
        flavour: `tensorrt` or `tensorrt-rtx`.
        folder: of the graph, takes the plan.
        name: of the plan.

    Raises:
        Refused: the graph cannot be parsed or built.
    """
    trt: Any = importlib.import_module(MODULES[flavour])
    errors: list[str] = []

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                errors.append(message)

    log = Log()
    try:
        builder = trt.Builder(log)
    except (RuntimeError, TypeError) as error:  # no device, or no driver of the version that it needs
        raise Refused(f"{flavour} cannot build here: {' '.join(errors) or error}") from None
    network = builder.create_network()
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(folder / job["graph"])):
        found = parser.get_error(0)
        raise Refused(found.desc(), found.node_name(), found.node_operator())
    config = _config(trt, builder, job, flavour)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise Refused(" ".join(errors[-2:]) or "the builder returned nothing and said nothing")
    data = bytes(plan)
    (folder / f"{name}.plan").write_bytes(data)
    return {
        "flavour": flavour,
        "version": str(trt.__version__),
        "plan": f"{name}.plan",
        "sha256": hashlib.sha256(data).hexdigest(),
        **{k: job[k] for k in ("driver", "weight_streaming", "sparse", "profiles")},
        "compute_capabilities": job["compute_capabilities"] if flavour == "tensorrt-rtx" else [_capability()],
    }


def _config(trt: Any, builder: Any, job: Mapping[str, Any], flavour: str) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.clear_flag(trt.BuilderFlag.TF32)  # which rounds the factors of fp32 to 10 bits
    for key, flag in (("sparse", "SPARSE_WEIGHTS"), ("weight_streaming", "WEIGHT_STREAMING")):
        if job[key]:
            config.set_flag(getattr(trt.BuilderFlag, flag))
    if job["compute_capabilities"] and flavour == "tensorrt-rtx":
        config.num_compute_capabilities = len(job["compute_capabilities"])
        for index, capability in enumerate(job["compute_capabilities"]):
            able = getattr(trt.ComputeCapability, "SM" + capability.replace(".", ""), None)
            if able is None:
                raise Refused(f"{flavour} {trt.__version__} does not know compute capability {capability}")
            config.set_compute_capability(able, index)
    for inputs in job["profiles"].values():
        profile = builder.create_optimization_profile()
        for name, (low, usual, high) in inputs.items():
            profile.set_shape(name, low, usual, high)
        config.add_optimization_profile(profile)
    return config


def _capability() -> str:
    import torch

    return ".".join(map(str, torch.cuda.get_device_capability()))


def prove(session: Any, tolerance: Mapping[str, float]) -> dict[str, Any]:
    """Return how far the outputs are from the expected ones of `cases.npz`, of real tokens.

    Raises:
        Refused: they are further off than the tolerance allows, or a clear choice is another.
    """
    with np.load(HERE / "cases.npz", allow_pickle=False) as held:
        cases: dict[str, dict[str, np.ndarray]] = {}
        for key in held.files:
            case, _, name = key.partition("/")
            cases.setdefault(case, {})[name] = held[key]
    worst = {kind: {"difference": 0.0, "magnitude": 0.0} for kind in ("logits", "past")}
    agreed: list[float] = []
    for case, arrays in cases.items():
        found = session({n: a for n, a in arrays.items() if not n.startswith(("expected ", "real "))})
        for name, output in found.items():
            real = arrays[f"real {name}"]
            ours, theirs = output.astype(np.float64)[real], arrays[f"expected {name}"][real]
            told = {"difference": np.abs(ours - theirs).max(initial=0), "magnitude": np.abs(theirs).max(initial=0)}
            allowed = tolerance["share"] * max(told["magnitude"], tolerance["floor"])
            if not told["difference"] <= allowed:  # NaN too
                much = f"{told['difference']:.2g}, {allowed:.2g} allowed"
                raise Refused(f"{name} of case {case} differs from what is expected by {much}")
            kind = worst["past" if name.startswith("present.") else "logits"]
            kind.update({k: max(kind[k], float(v)) for k, v in told.items()})
            if name == "logits" and theirs.shape[-1] > 1:
                agreed.append(_agreement(ours, theirs, allowed, case))
    return {"shapes": len(cases), **worst, **({"agreement": float(np.mean(agreed))} if agreed else {})}


def _agreement(ours: np.ndarray, theirs: np.ndarray, allowed: float, case: str) -> float:
    equal = ours.argmax(-1) == theirs.argmax(-1)
    clear = theirs.max(-1) - np.partition(theirs, -2, axis=-1)[..., -2] > allowed
    if not equal[clear].all():
        raise Refused(f"case {case}: chooses other tokens or labels where the model's choice is clear")
    return float(equal.mean())


def _dense() -> list[Path]:
    """Return the dense parent's engine, where it stands beside this one as a run leaves it."""
    beside = HERE.with_name(f"{HERE.name}-dense")
    return [beside] if (beside / "engine.json").is_file() else []


def time_(manifest: Mapping[str, Any], references: list[Path]) -> dict[str, Any]:
    """Return the clock's figures of the target's request, in turns with the reference's where there is one."""
    target = manifest["target"]
    options = [f"--{n}={target[n]}" for n in ("batch", "prompt", "generate", "threads")]
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "figures.json"
        command = [sys.executable, str(HERE / "bench.py"), *map(str, [*references, HERE]), *options, "--device=cuda"]
        done = subprocess.run([*command, f"--json={out}"], check=False)
        if done.returncode:
            raise Refused("the clock could not time the engine; what it said is above")
        figures: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return figures


def _ready(tools: Mapping[str, Any], manifest: Mapping[str, Any], job: Mapping[str, Any], rebuild: bool) -> Any:
    """Return the loaded plan, built here if need be."""
    why = tools["refusal"](HERE, manifest)
    if why and why.startswith("no CUDA device"):
        raise Refused(why)
    why = why or tools["invalid"](HERE, manifest)
    if why or rebuild:
        there = [f for f in (job["flavour"], *MODULES) if importlib.util.find_spec(MODULES[f])]
        if not there:
            raise Refused("neither tensorrt nor tensorrt_rtx is installed; pip install tensorrt-rtx-cu13, or tensorrt")
        print(f"building with {there[0]}: {why or 'as asked'}", file=sys.stderr)
        about = build({**job, "compute_capabilities": []}, there[0], HERE, LOCAL)
        (HERE / f"{LOCAL}.json").write_text(json.dumps(about, indent=2), encoding="utf-8")
    return tools["Session"](HERE, manifest)


def check(args: argparse.Namespace) -> dict[str, Any]:
    """Return all that is found of the engine here."""
    manifest, job = (json.loads((HERE / n).read_text(encoding="utf-8")) for n in ("engine.json", "build.json"))
    found: dict[str, Any] = {
        "format": 1,
        "engine": hashlib.sha256((HERE / "engine.json").read_bytes()).hexdigest(),
        "state": "not run",
        "machine": {"system": platform.platform(), "processor": platform.machine()},
    }
    try:
        tools = runpy.run_path(str(HERE / "bench_tensorrt.py"))
        session = _ready(tools, manifest, job, args.rebuild)
        found["state"] = "failed"  # until all is done
        found["machine"] |= session.versions
        found["kernels"] = session.kernels()
        found["used"] = runpy.run_path(str(HERE / "kernels.py"))["used"](session.layers(), job["eligible"])
        found["parity"] = prove(session, job["tolerance"])
        found["latency"] = time_(manifest, args.reference or _dense())
    except (Refused, ValueError) as error:
        return {**found, "why": str(error)}
    return {**found, "state": "done"}


def main() -> int:
    """Do what the command line says and return the exit status: 0 done, 2 not run or failed, 3 cannot be built."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rebuild", action="store_true", help="build the plan anew even where the one that came fits")
    parser.add_argument(
        "--reference", type=Path, action="append", default=[], help="another such folder to time beside"
    )
    parser.add_argument("--build", metavar="NAME", help="only build NAME.plan, print what it is")
    args = parser.parse_args()
    if args.build:
        job = json.loads((HERE / "build.json").read_text(encoding="utf-8"))
        try:
            print(json.dumps(build(job, job["flavour"], HERE, args.build)))
        except Refused as error:
            print(json.dumps(error.told))
            return 3
        return 0
    found = check(args)
    (HERE / RESULTS).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(f"{found['state']}{': ' + found['why'] if 'why' in found else ''}; written to {HERE / RESULTS}")
    return 0 if found["state"] == "done" else 2


if __name__ == "__main__":
    sys.exit(main())
