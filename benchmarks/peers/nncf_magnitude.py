"""NNCF: magnitude, per layer (`magnitude`) and over all layers (`global`), unstructured only."""

from __future__ import annotations

import _case
import nncf
import torch

MODES = {"magnitude": "UNSTRUCTURED_MAGNITUDE_LOCAL", "global": "UNSTRUCTURED_MAGNITUDE_GLOBAL"}


def prune(model, tokenizer, calibration: torch.Tensor, method: str, pattern: str):
    outside = nncf.IgnoredScope(patterns=[".*lm_head.*", ".*embed.*"], validate=False)
    mode = getattr(nncf.PruneMode, MODES[method])
    inputs = {"input_ids": calibration[:1]}
    pruned = nncf.prune(model, mode=mode, ratio=0.5, examples_inputs=inputs, ignored_scope=outside)
    return nncf.strip(pruned, strip_format=nncf.StripFormat.IN_PLACE)


if __name__ == "__main__":
    _case.main("nncf", nncf.__version__, prune)
