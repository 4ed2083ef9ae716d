"""An engine for torch itself: the model as one exported program, opened without any of its code.

`model.pt2` (`torch.export`) takes what the graph of `exporters/onnx` takes, keys and values as pairs, and needs nothing
but torch.  Two runtimes open it: `torch` calls its operators one after the other, `torch-compiled` has `torch.compile`
make kernels of them, with dynamic lengths, which takes a compiler and, at the first calls, a minute or more.

Precision: that of the target, logits always float32.  Codes: none; linears with codes belong to `onnx`.
Helps: as the reference that any other runtime has to beat on the same machine, and in latency profiles of torch.
Hurts: decoding at batch 1, where calling operators costs more than they do; and small models throughout.
Cost: seconds per block, and the weights once more in memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.contracts import Engine, Export, Exporter, Settings, Target
from compress.errors import BadSettings
from compress.facts import Facts

if TYPE_CHECKING:
    from compress.artifact import Artifact
    from compress.context import Context

PROGRAM = "model.pt2"
MODES = {"torch": "eager", "torch-compiled": "compiled"}


class TorchSettings(Settings):
    """The export to torch has no settings."""


class Torch(Exporter):
    """Write a program, and open it with torch."""

    Settings = TorchSettings
    runtimes = tuple(MODES)

    def plan(self, facts: Facts, target: Target | None) -> None:
        """Refuse codes, and targets that torch does not serve.

        Raises:
            BadSettings: no target, or one of another runtime or device; or a model with codes.
        """
        if target is None or target.runtime not in self.runtimes:
            got = target.runtime if target else None
            raise BadSettings(f"must be {' or '.join(map(repr, self.runtimes))}, got {got!r}", key="runtime")
        if target.device not in ("cpu", "cuda"):
            raise BadSettings(f"must be 'cpu' or 'cuda', got {target.device!r}", key="device")
        if target.precision == "bf16":
            raise BadSettings("arrays hold no 'bf16' between steps; 'fp16' or 'fp32' would do", key="precision")
        if facts.grids:
            raise BadSettings(
                f"torch has no kernels for codes here, and {len(facts.grids)} linears have some; use onnx"
            )

    def export(self, artifact: Artifact, folder: Path, context: Context, target: Target | None) -> Export:
        """Write the program; the model stays as it is."""
        import torch  # seconds, which settings need not wait for

        from compress import files
        from compress.engines.twin import twin
        from exporters import _graph

        assert target is not None
        with twin(artifact.model, _graph.TYPES[target.precision], "cpu") as same:
            decoder = artifact.task == "causal-lm"
            call = _graph.decoder_call(same) if decoder else _graph.encoder_call(same, artifact.task)
            module = call.module.eval()
            program = torch.export.export(module, call.arguments, dynamic_shapes=call.shapes, strict=False)
            with files.disk_errors(folder):
                torch.export.save(program, folder / PROGRAM)
        facts: dict[str, Any] = {
            "clock": "torch",
            "graph": PROGRAM,
            "mode": MODES[target.runtime],
            "precision": target.precision,
            "inputs": [{"name": n} for n in call.inputs],
            "outputs": [{"name": n} for n in call.outputs],
            "past": [{"layer": k.layer, "heads": k.heads, "head_dim": k.head_dim} for k in call.past],
        }
        return Export(files=(PROGRAM,), facts=facts)

    def open(self, folder: Path, target: Target) -> Engine:
        """Load the program for the target.

        Raises:
            Unavailable: the target's device is not here.
        """
        from exporters.torch._engine import TorchEngine

        return TorchEngine(folder, target)
