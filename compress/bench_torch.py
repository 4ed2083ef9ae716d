"""How the clock (`bench.py`, which this file stands beside) opens and calls programs of torch, compiled or not."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.export.passes import move_to_device_pass

TYPES = {"fp32": torch.float32, "fp16": torch.float16}
TOKENS = 32  # that are drawn from: any model has so many, and which they are does not matter to the clock


class Opened:
    """The program of an engine folder, on the device that was asked for.

    Args:
        folder: the engine.
        manifest: the content of its `engine.json`.
        args: device, threads and batch.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], args: argparse.Namespace) -> None:
        torch.set_num_threads(args.threads)
        if args.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("torch finds no GPU here; is the driver there?")
        self.versions = {"torch": str(torch.__version__)}
        self._args, self._manifest = args, manifest
        self._names = [i["name"] for i in manifest["inputs"]]
        module: Any = move_to_device_pass(torch.export.load(folder / manifest["graph"]), args.device).module()
        self._call: Any = torch.compile(module, dynamic=True) if manifest["mode"] == "compiled" else module

    @property
    def decoder(self) -> bool:
        """Whether the program writes one token after another."""
        return "position_ids" in self._names

    def caller(self, past: int, new: int) -> Callable[[], None]:
        """Return a call that runs `new` tokens per sequence after `past` cached ones; all stays on the device."""
        given, cuda = self._given(past, new), self._args.device == "cuda"

        def run() -> None:
            with torch.inference_mode():
                self._call(*given)
            if cuda:
                torch.cuda.synchronize()

        run()  # a program that is compiled is compiled now
        return run

    def _given(self, past: int, new: int) -> list[Any]:
        batch, generator = self._args.batch, torch.Generator().manual_seed(0)
        ones = torch.ones(batch, past + new, dtype=torch.int64)
        arrays = {
            "input_ids": torch.randint(TOKENS, (batch, new), generator=generator),
            "attention_mask": ones,
            "token_type_ids": torch.zeros(batch, new, dtype=torch.int64),
            "position_ids": torch.arange(past, past + new).expand(batch, new).contiguous(),
        }
        given: list[Any] = [arrays[n].to(self._args.device) for n in self._names if n in arrays]
        if self.decoder:
            shapes = [(batch, p["heads"], past, p["head_dim"]) for p in self._manifest["past"] for _ in range(2)]
            kind = TYPES[self._manifest["precision"]]
            tensors = [torch.randn(s, generator=generator).to(self._args.device, kind) for s in shapes]
            given.append(list(zip(tensors[::2], tensors[1::2])))  # noqa: B905
        return given
