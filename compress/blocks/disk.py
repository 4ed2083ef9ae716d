"""How shapes and branches are written: in the plain configuration where it can say them, else in one of our own.

A folder that needs more than its architecture's configuration has this `config.json`, at which plain transformers stops
instead of guessing:

    {"model_type": "compress", "vocab_size": "<a text>", "parent_type": "llama", "parent": {...},
     "blocks": [{"heads": ...}, ...], "branches": {"<linear>": <rank>}}

`parent` is the architecture's configuration as it was, `blocks` has an entry per block, and the branches' tensors are
in `branches.safetensors` under `<linear>.a` and `<linear>.b`.  The text for a number stops whoever names the
architecture's class himself: that class reads any `config.json`, takes its defaults for what is not there, and fills
what no file holds with noise.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import PreTrainedModel

from compress import files, tensors, tree
from compress.blocks.reshaping import shape_
from compress.branched import Branch, Branched
from compress.errors import BadModel
from compress.facts import BlockConfig
from compress.families import Family
from compress.tensors import Layout, Place

MODEL_TYPE = "compress"
CONFIG = "config.json"
BRANCHES = "branches.safetensors"
_STOP = "blocks differ or have branches; only compress opens this folder"


@dataclass(frozen=True)
class Shapes:
    """What such a `config.json` says.

    Attributes:
        parent_type: the architecture.
        parent: its configuration.
        layout: the shape of every block.
        ranks: of the branches, by linear name.
    """

    parent_type: str
    parent: Mapping[str, Any]
    layout: tuple[BlockConfig, ...]
    ranks: Mapping[str, int]


def branch_tensors(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Return the parameters of all branches by name."""
    return {f"{n}.{part}": model.get_parameter(f"{n}.{part}") for n in tree.ranks(model) for part in ("a", "b")}


def branch_(model: PreTrainedModel, given: Mapping[str, Branch]) -> None:
    """Put branches beside linears of the blocks; one that has a branch gets the new one in its place.

    Raises:
        ValueError: no such linear, or a branch that does not fit it.
    """
    linears = tree.block_linears(model)
    if unknown := given.keys() - linears.keys():
        raise ValueError(f"{min(unknown)}: no linear of the blocks, so it can have no branch")
    for name, branch in given.items():
        tree.replace_(model, name, Branched(linears[name], branch))


def write(model: PreTrainedModel, folder: Path, get: Callable[[str], Tensor]) -> None:
    """Write the branches, and say in `config.json`, written from the model's configuration, what it leaves open.

    Args:
        model: what was written to the folder without its branches; may stand on `meta`.
        folder: where.
        get: returns a parameter of the model by name.
    """
    config, layout, found = files.read_json(folder / CONFIG), tree.layout(model), tree.ranks(model)
    changes = None if found else _plain(model.config, tree.family(model), layout)
    if changes is None:
        own = {"model_type": MODEL_TYPE, "vocab_size": _STOP, "parent_type": config.pop("model_type")}
        table = [dataclasses.asdict(block) for block in layout]
        files.write_json(folder / CONFIG, {**own, "parent": config, "blocks": table, "branches": found})
    elif changes:
        files.write_json(folder / CONFIG, dict(sorted((config | changes).items())))  # as transformers sorts it
    if found:
        like = {n: Layout(p.dtype, tuple(p.shape)) for n, p in branch_tensors(model).items()}
        tensors.write(folder / BRANCHES, like, get)


def read(folder: Path) -> Shapes | None:
    """Return what a folder's `config.json` says of shapes; None where it is its architecture's own.

    Raises:
        BadModel: it says what no model can have.
    """
    path = folder / CONFIG
    config = {}
    with contextlib.suppress(ValueError):  # who asks for the architecture's own will hear of it
        config = files.read_json(path)
    if not isinstance(config, dict) or config.get("model_type") != MODEL_TYPE:
        return None
    try:
        layout = tuple(BlockConfig(**block) for block in config["blocks"])
        found = {str(n): int(rank) for n, rank in config["branches"].items()}
        return Shapes(config["parent_type"], {**config["parent"]}, layout, found)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadModel(f"{path}: not what compress writes ({error}); make the folder anew") from None


def shaped(plain: type[PreTrainedModel], layout: tuple[BlockConfig, ...]) -> type[PreTrainedModel]:
    """Return a class that makes the model with blocks of these shapes, for `from_pretrained` to fill."""

    def __init__(self: PreTrainedModel, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        plain.__init__(self, *args, **kwargs)
        shape_(self, layout)

    return type(plain.__name__, (plain,), {"__init__": __init__, "__module__": plain.__module__})


def hollow_branches_(model: PreTrainedModel, ranks: Mapping[str, int]) -> None:
    """Put unfilled branches beside linears of the blocks, on `meta` where these are.

    Raises:
        BadModel: no such linear.
    """
    linears = tree.block_linears(model)
    if unknown := ranks.keys() - linears.keys():
        raise BadModel(f"{min(unknown)}: has a branch and is no linear of the blocks; make the folder anew")
    for name, rank in ranks.items():
        weight = linears[name].weight.detach()
        rows, columns = weight.shape
        branch = Branch(weight.new_empty(rank, columns), weight.new_empty(rows, rank))
        tree.replace_(model, name, Branched(linears[name], branch))


def find_branches_(model: PreTrainedModel, folder: Path, ranks: Mapping[str, int]) -> dict[str, Place]:
    """Put unfilled branches beside linears of the blocks, and return where their tensors lie by parameter name.

    Raises:
        BadModel: the stored branches are not those that the configuration names, or do not fit.
    """
    hollow_branches_(model, ranks)
    path, wanted = folder / BRANCHES, branch_tensors(model)
    stored = tensors.places(path) if path.is_file() else {}
    if odd := wanted.keys() ^ stored.keys():
        what = "is missing" if min(odd) in wanted else "is there and not in the configuration"
        raise BadModel(f"{path}: {min(odd)} {what}; make the folder anew")
    for name, place in stored.items():
        if place.layout.shape != wanted[name].shape:
            shapes = f"{list(place.layout.shape)} where the configuration asks for {list(wanted[name].shape)}"
            raise BadModel(f"{path}: {name} is {shapes}; weights and configuration do not belong together")
    return stored


def load_branches_(model: PreTrainedModel, folder: Path, ranks: Mapping[str, int]) -> None:
    """Put the stored branches beside the model's linears, which are real.

    Raises:
        BadModel: as `find_branches_` says.
    """
    for name, place in find_branches_(model, folder, ranks).items():
        linear = model.get_submodule(name.rpartition(".")[0])
        tree.replace_(model, name, nn.Parameter(place.read().to(linear.weight)))  # type: ignore[arg-type]


def _plain(config: Any, table: Family, layout: tuple[BlockConfig, ...]) -> dict[str, Any] | None:
    """Return what to change in the architecture's configuration so that it says this layout; None if it cannot."""
    wanted = layout[0]
    if set(layout) != {wanted} or 0 in (wanted.heads, wanted.ffn):
        return None
    if _declared(config, table) == wanted:
        return {}
    changes: dict[str, Any] = {table.config_ffn: wanted.ffn}
    if table.free_heads:
        changes |= {"num_attention_heads": wanted.heads, "num_key_value_heads": wanted.kv_heads}
        changes["head_dim"] = wanted.head_dim
    try:
        again = type(config).from_dict({**config.to_dict(), **changes})
    except (ValueError, StrictDataclassError):  # such as Llama's, which wants heads to divide the hidden size
        return None
    return changes if _declared(again, table) == wanted else None


def _declared(config: Any, table: Family) -> BlockConfig:
    """Return the shape that the architecture gives all blocks."""
    heads, hidden = config.num_attention_heads, config.hidden_size
    return BlockConfig(
        heads=heads,
        kv_heads=config.num_key_value_heads if table.groups else heads,
        head_dim=getattr(config, "head_dim", None) or hidden // heads,
        ffn=getattr(config, table.config_ffn) or 4 * hidden,
    )
