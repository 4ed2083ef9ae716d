"""A model whose blocks stay on disk: everything else is real, and the blocks' parameters stand on `meta`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import GenerationConfig, PreTrainedModel

from compress import files, tensors, tree
from compress.errors import BadModel
from compress.tensors import Place

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_LEGACY = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


@dataclass
class Found:
    """What a folder's files hold of a model.

    Attributes:
        places: by the model's names, where each tensor lies.
        report: keys that are missing, unexpected or of another shape, as `from_pretrained` tells them.
    """

    places: dict[str, Place] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)


def build(make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """Return the model that `make` makes, with every parameter on `meta` and every buffer real."""

    def leave_out(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        hollow = torch.empty_like(parameter, device="meta")
        return None if parameter.is_meta else nn.Parameter(hollow, parameter.requires_grad)

    hook = register_module_parameter_registration_hook(leave_out)  # type: ignore[arg-type]
    try:
        model = make()
    finally:
        hook.remove()
    model.tie_weights()
    return model


def find(folder: Path, model: PreTrainedModel) -> Found:
    """Look up the model's tensors, named with or without the base model's prefix, in a folder's safetensors."""
    wanted = model.state_dict()
    found, unexpected = Found(), set[str]()
    for path in _files(folder):
        for key, place in tensors.places(path).items():
            name = _own_name(key, model.base_model_prefix, wanted)
            if name:
                found.places[name] = place
            else:
                unexpected.add(key)
    tied: Mapping[str, str] = model.all_tied_weights_keys
    for target, source in tied.items():
        if target in found.places:
            found.places.setdefault(source, found.places[target])
    ignored = [re.compile(p) for p in model._keys_to_ignore_on_load_unexpected or ()]
    shapes = {n: (p.layout.shape, tuple(wanted[n].shape)) for n, p in found.places.items()}
    found.report = {
        "missing_keys": {n for n in wanted if n not in found.places and tied.get(n) not in found.places},
        "mismatched_keys": {(n, stored, asked) for n, (stored, asked) in shapes.items() if stored != asked},
        "unexpected_keys": {k for k in unexpected if not any(p.search(k) for p in ignored)},
    }
    return found


def fill_(model: PreTrainedModel, places: Mapping[str, Place], folder: Path) -> None:
    """Make real all that is outside the blocks: read it, or let it start at random where no file holds it."""
    blocks, tied = list(tree.blocks(model)), model.all_tied_weights_keys
    inside = {n for n, _ in model.named_parameters() if any(n.startswith(f"{b}.") for b in blocks)}
    missing = []
    for name, like in model.state_dict(keep_vars=True).items():
        source = tied.get(name)
        if name in inside or (source and not _differs(places, name, source)):
            continue
        tied.pop(name, None)
        if name in places:
            _put_(model, name, like, places[name].read().to(like.dtype))
        else:
            missing.append(name)
            _put_(model, name, like, torch.empty_like(like, device="cpu"))
    model.tie_weights(recompute_mapping=False)
    for name in missing:
        _forget_(model, name)
    if missing:
        model.initialize_weights()  # type: ignore[no-untyped-call]
    if model.can_generate() and (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)


def dtype_of(config: Any, folder: Path) -> torch.dtype:
    """Return the dtype that the configuration names, or else that of the first floating tensor in the folder."""
    named: torch.dtype | None = getattr(config, "dtype", None)
    stored = (p.layout.dtype for path in _files(folder) for p in tensors.places(path).values())
    return named or next((d for d in stored if d.is_floating_point), torch.float32)


def _files(folder: Path) -> list[Path]:
    """Return the files of the weights: the one, or those that the index names."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        raise BadModel(f"{folder}: holds neither {SINGLE} nor {INDEX}; fetch the model again")
    shards = [folder / name for name in sorted(set(files.read_json(folder / INDEX)["weight_map"].values()))]
    if gone := [p for p in shards if not p.is_file()]:
        raise BadModel(f"{gone[0]}: is missing, though {INDEX} names it; fetch the model again")
    return shards


def _put_(model: PreTrainedModel, name: str, like: Tensor, tensor: Tensor) -> None:
    owner, _, last = name.rpartition(".")
    tensor = nn.Parameter(tensor, like.requires_grad) if isinstance(like, nn.Parameter) else tensor
    tensor._is_hf_initialized = True  # type: ignore[attr-defined]
    setattr(model.get_submodule(owner), last, tensor)


def _forget_(model: PreTrainedModel, name: str) -> None:
    """Let `initialize_weights` fill this tensor."""
    model.get_submodule(name.rpartition(".")[0])._is_hf_initialized = False  # type: ignore[assignment]
    attrgetter(name)(model)._is_hf_initialized = False


def _own_name(key: str, prefix: str, wanted: Mapping[str, Any]) -> str | None:
    """Return the model's name of a stored tensor."""
    for old, new in _LEGACY.items():
        key = key.replace(old, new)
    return next((n for n in (key, f"{prefix}.{key}", key.removeprefix(f"{prefix}.")) if n in wanted), None)


def _differs(places: Mapping[str, Place], name: str, source: str) -> bool:
    """Tell whether tensors that should be tied are both stored, and not alike."""
    if name not in places or places[name] == places[source]:
        return False
    return not tensors.same_bits(places[name].read(), places[source].read())
