"""AutoRound: rounding learned by the signs of gradients, and its RTN."""

from __future__ import annotations

import _case
import auto_round
import torch

STEPS = {"autoround": 200, "rtn": 0}


def change(model, tokenizer, calibration: torch.Tensor, method: str, form: str):
    asked = _case.Grid.of(form)
    rounding = auto_round.AutoRound(
        model,
        tokenizer,
        bits=asked.bits,
        group_size=asked.group_size,
        sym=asked.symmetric,
        iters=STEPS[method],
        nsamples=len(calibration),
        seqlen=calibration.shape[1],
        dataset=list(calibration.split(1)),
        batch_size=8,
        enable_torch_compile=False,
        device_map="cpu",
    )
    return rounding.quantize()[0]


if __name__ == "__main__":
    _case.main("auto-round", auto_round.__version__, change)
