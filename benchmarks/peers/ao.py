"""torchao: Wanda (0.18 is the last release line that holds it)."""

from __future__ import annotations

import _case
import torch
import torchao
from torchao.sparsity import WandaSparsifier


def prune(model, tokenizer, calibration: torch.Tensor, method: str, pattern: str):
    given = {"semi_structured_block_size": 4} if pattern == "2:4" else {"sparsity_level": 0.5}
    sparsifier = WandaSparsifier(**given)
    inside = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "lm_head" not in n]
    sparsifier.prepare(model, [{"tensor_fqn": f"{n}.weight"} for n in inside])
    with torch.no_grad():
        for batch in calibration.split(8):
            model(input_ids=batch)
    sparsifier.step()
    sparsifier.squash_mask()
    return model


if __name__ == "__main__":
    _case.main("torchao", torchao.__version__, prune)
