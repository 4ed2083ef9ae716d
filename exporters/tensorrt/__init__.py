"""An engine for TensorRT or TensorRT-RTX: a plan built ahead of time, the ONNX graph, and a kit for the target.

The graph is that of `exporters/onnx`.  TensorRT takes its precision as it is written: fp32 (without TF32), fp16
or bf16, whose graph onnxruntime cannot run.  A plan has two profiles, for prompts and for single tokens behind a past,
with the target's request as the usual case and `max_batch`, `max_length` as the limits.

Flavours: `tensorrt-rtx` builds on machines without a GPU and chooses its kernels where the engine is loaded;
`tensorrt` builds only on the GPU that will run it, and without one the folder holds everything but the plan.

Kit: `python kit.py` in the folder, on the target, builds the plan if need be, proves it on `cases.npz`, times it, and
writes `kit-results.json`, which `compress evaluate FOLDER --import` takes.  Without a GPU the engine is **not run**: no
parity, no latency, and the report says so.

Codes: symmetric ones of 4 and 8 bits, in groups that divide the inputs or whole rows, as DequantizeLinear.  Those of 8
bits may be floats (E4M3), for GPUs of compute capability 8.9 or later.  Inputs stay floats unless they are static
(`activation = "static"` of a quantizer): then QuantizeLinear and DequantizeLinear stand before the product too, which
tensor cores compute in 8 bits.  What this rounding loses is measured in torch, on the calibration data, and stated in
`engine.json`; where it is beyond the tolerance, inputs are left as floats.  Zeros in 2:4: the builder may choose sparse
kernels, and what it chose is known only where a GPU is, as far as the names of kernels tell.

Bytes: TensorRT writes memory that it never set into its plans: two builds have one size and differ in few bytes.  An
engine is known by the digest of what it was made of, and a rerun keeps the file there is.
Helps: on NVIDIA GPUs.  Hurts: code takes 5 to 11 MB of a plan, which is most of a small model's.
Cost: seconds for a small model, more with its size; the weights a few times in memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from compress import installed
from compress.contracts import DataUse, Engine, Export, Exporter, Settings, Target
from compress.errors import BadSettings
from compress.facts import Facts
from exporters.tensorrt import _judge

if TYPE_CHECKING:
    from torch import Tensor

    from compress.artifact import Artifact
    from compress.context import Context
    from exporters._graph import Graph

GRAPH = "model.onnx"


class TensorrtSettings(Settings):
    """Settings of the export to TensorRT."""

    flavour: Literal["tensorrt", "tensorrt-rtx"] | None = Field(
        None, description="which of the two builds; the target's runtime unless given, for 'tensorrt' what is installed"
    )
    compute_capabilities: tuple[str, ...] = Field(
        (),
        description="of the GPUs that a plan of tensorrt-rtx is for, such as ['8.6', '8.9']; by default all that it "
        "takes to be Ampere or later",
    )
    sparse: Literal["auto", "on", "off"] = Field(
        "auto", description="whether the builder may use sparse kernels; 'auto': where zeros are 2:4"
    )
    weight_streaming: bool = Field(
        False, description="whether weights may stay in the host's memory and stream to the GPU"
    )
    kernels: Literal["auto", "exact", "fast"] = Field(
        "auto",
        description="what linears with static inputs read: floats ('exact'), codes ('fast'), or 'auto', codes where "
        "their loss, measured on the calibration data, stays within the tolerance",
    )
    tolerance: float = Field(
        0.005,
        ge=0,
        description="what rounded inputs may lose where kernels = 'auto', over floats: nats a token (0.005 is half a "
        "percent of perplexity), nats a text of a classifier, else the share of the outputs' energy",
    )


class Tensorrt(Exporter):
    """Write a plan and its kit, and open it on the GPU."""

    Settings = TensorrtSettings
    settings: TensorrtSettings
    runtimes = tuple(_judge.MODULES)
    uses = frozenset({"calibration"})
    patterns = ("2:4",)
    ahead = True

    def data_uses(self, facts: Facts) -> frozenset[DataUse]:
        """Return `calibration` for models with static inputs, to measure on what rounding them loses."""
        static = any(g.activation == "static" for grid in facts.grids.values() for g in grid.possible)
        return self.uses if static and self.settings.kernels != "exact" else frozenset()

    def available(self) -> str | None:
        """Return why no plan can be built, or None; a plan of `tensorrt` may be left to the kit."""
        if _judge.installed() or self.settings.flavour == "tensorrt":
            return None
        return f"neither TensorRT nor TensorRT-RTX is installed; {_judge.INSTALL['tensorrt-rtx']}"

    def plan(self, facts: Facts, target: Target | None) -> None:
        """Refuse targets, flavours and codes that no plan serves.

        Raises:
            BadSettings: see `_judge`.
        """
        _judge.check_target(target, facts)
        assert target is not None
        flavour = _judge.flavour_of(self.settings.flavour, target)
        if flavour == "tensorrt-rtx" and flavour not in _judge.installed():
            raise BadSettings(f"{flavour} is not installed; {_judge.INSTALL[flavour]}", key="runtime")
        if self.settings.compute_capabilities and flavour == "tensorrt":
            raise BadSettings(
                "a plan of 'tensorrt' is for the GPU that builds it; leave it out", key="compute_capabilities"
            )
        _judge.check_codes(facts, self.settings.compute_capabilities)

    def export(self, artifact: Artifact, folder: Path, context: Context, target: Target | None) -> Export:
        """Write graph, cases, kit and, where it can be built here, the plan; the model stays as it is."""
        from compress import grids, tree  # seconds, which settings need not wait for
        from compress.engines.choice import INTEGER
        from exporters import _graph
        from exporters.tensorrt import _cases, _inputs, _job

        assert target is not None
        known = tree.facts(artifact.model, artifact.task).after(grids=grids.facts(artifact.grids))
        flavour, opset = _judge.flavour_of(self.settings.flavour, target), 21 if artifact.grids else 20
        decoder = artifact.task == "causal-lm"
        if decoder:
            graph = _graph.decoder(artifact.model, target.precision, opset)
        else:
            graph = _graph.encoder(artifact.model, artifact.task, target.precision, opset)
        inputs = graph.inputs()
        choice = _inputs.choose(artifact, self.settings.kernels, self.settings.tolerance, context)
        rounds = choice.get("chosen") == INTEGER
        kernels = _judge.kernels(known, rounds=rounds)
        written, sizes = _graph.with_codes(graph, artifact.grids, kernels) if kernels else (graph, {})
        names, eligible = _graph.write(written, folder / GRAPH), _eligible(artifact, written)
        limits = _job.limits(target, known.positions)
        arrays, tolerance = _cases.proof(artifact, target.precision, *limits, rounds=rounds)
        job: dict[str, Any] = {
            "flavour": flavour,
            "graph": GRAPH,
            "driver": _judge.driver(flavour),
            "profiles": _job.profiles(inputs, target, known.positions, decoder=decoder),
            "compute_capabilities": list(self.settings.compute_capabilities),
            "eligible": eligible,
            "sparse": self.settings.sparse == "on" or (self.settings.sparse == "auto" and bool(eligible["sparse"])),
            "weight_streaming": self.settings.weight_streaming,
            "tolerance": tolerance,
        }
        _job.write(folder, job, arrays)
        facts = {
            "clock": "tensorrt",
            "graph": GRAPH,
            "precision": target.precision,
            "opset": opset,
            "inputs": inputs,
            "outputs": graph.outputs(),
            "past": [{"layer": k.layer, "heads": k.heads, "head_dim": k.head_dim} for k in graph.past],
            "tensorrt": _job.plan(folder, flavour, context.report),
            "libraries": ["onnx", "onnxscript", *installed.bringing(flavour)],
            **({"codes": _judge.described(known, sizes, rounds=rounds)} if sizes else {}),
            **({"choice": choice} if choice else {}),
            **({"tolerance": tolerance} if rounds else {}),
        }
        plans = [p.name for p in folder.glob("*.plan")]
        return Export(files=(*names, *plans, *_job.FILES), facts=facts)

    def absent(self, folder: Path) -> str | None:
        """Return why the plan cannot run on this machine, or None."""
        from compress import bench_tensorrt, files

        manifest = files.read_json(folder / "engine.json")
        return bench_tensorrt.refusal(folder, manifest) or bench_tensorrt.invalid(folder, manifest)

    def used(self, folder: Path) -> list[str]:
        """Return how many of the layers with zeros in 2:4, or codes, got kernels that use them, or that none knows."""
        from compress import bench_tensorrt, files
        from exporters.tensorrt import _job, _kernels

        session = bench_tensorrt.Session(folder, files.read_json(folder / "engine.json"))
        return _kernels.used(session.layers(), files.read_json(folder / _job.JOB)["eligible"])

    def open(self, folder: Path, target: Target) -> Engine:
        """Load the plan.

        Raises:
            Unavailable: no GPU, not the runtime that built it, or not a GPU that it was built for.
        """
        from exporters.tensorrt._engine import TensorrtEngine

        return TensorrtEngine(folder)


def _eligible(artifact: Artifact, graph: Graph) -> dict[str, dict[str, list[str]]]:
    """Return by use of `_kernels` the linears that could have such kernels, and their nodes.

    Sparse: those with at most 2 weights of each 4 that follow each other along the inputs.
    """

    def fits(mask: Tensor) -> bool:
        return mask.shape[1] % 4 == 0 and bool((mask.view(len(mask), -1, 4).sum(-1) <= 2).all())

    sparse = [n for n in artifact.masks if fits(artifact.masks[n])]
    uses = {"sparse": sparse, "low-bit": list(artifact.grids)}
    return {use: {n: _nodes(graph, n) for n in linears} for use, linears in uses.items()}


def _nodes(graph: Graph, linear: str) -> list[str]:
    """Return the names of a linear's product and of what makes the product's weight of codes, in this order."""
    held = graph.model.graph.initializers
    value = held.get(f"{linear}.codes", held.get(f"{linear}.weight"))
    found: list[str] = []
    while value is not None and (uses := list(value.uses())):
        node = uses[0].node
        found.insert(0, str(node.name))
        value = node.outputs[0] if node.op_type == "DequantizeLinear" else None
    return found or [linear]  # which no layer bears
