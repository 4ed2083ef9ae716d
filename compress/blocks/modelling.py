"""Blocks of unlike shapes in torch and transformers alone: what `compress` shapes them with, and opens them without it.

An exported folder carries this very file, and `auto_map` in its `config.json` names it: with `trust_remote_code=True`
`from_pretrained` gives the architecture's own model (`parent_type`, `parent`) with these blocks (`blocks`), and with
low-rank branches beside linears (`branches`: their ranks); `family` tells what the architecture calls its parts.
"""

from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import torch
import transformers as tf
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import linear as product
from transformers.cache_utils import DummyLayer
from transformers.pytorch_utils import Conv1D
from transformers.utils.hub import cached_file


class NoAttention(nn.Module):
    """In place of attention: every token by itself, and no keys and values are kept.

    Args:
        layer_idx: the block's place, and that of its entry in a cache.
        name: of the module that the tokens pass.
        through: that module: `NoOutput`, a linear that stands in, or an identity before such a linear (BERT's).
        head_dim: name and width of a head, as the family's attention spells it.
    """

    def __init__(self, layer_idx: int, name: str, through: nn.Module, **head_dim: int) -> None:
        super().__init__()
        self.layer_idx, self.name = layer_idx, name
        setattr(self, name, through)
        for attribute, width in head_dim.items():
            setattr(self, attribute, width)

    def forward(self, hidden_states: Tensor, *_: Any, past_key_values: Any = None, **__: Any) -> tuple[Tensor, None]:
        """Return what the tokens become, and no weights."""
        if past_key_values is not None:  # so that the cache asks another layer how many tokens it has seen
            layers = past_key_values.layers
            while len(layers) <= self.layer_idx and past_key_values.layer_class_to_replicate is not None:
                layers.append(past_key_values.layer_class_to_replicate())
            layers[self.layer_idx] = DummyLayer()  # type: ignore[no-untyped-call]
        return self.get_submodule(self.name)(hidden_states), None


class NoOutput(nn.Module):
    """A part of a block that adds nothing."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return a zero without dimensions, which costs nothing to add and which a graph loses altogether."""
        return torch.zeros((), dtype=hidden_states.dtype, device=hidden_states.device)


def reshape_(block: nn.Module, family: Any, shape: Any, *, norm_first: bool) -> None:
    """Give a block another shape; where a linear changes its size, it becomes zeros.

    Args:
        block: on any device, `meta` too.
        family: the names of its parts, with the attributes of `compress.families.Family`.
        shape: with the attributes of `compress.facts.BlockConfig`.
        norm_first: whether its parts read a norm's output.

    Raises:
        ValueError: it cannot have that shape.
    """
    width: int = getattr(block.get_submodule(family.core), family.head_dim)
    if shape.head_dim != width or (shape.heads != shape.kv_heads and not family.groups):
        raise ValueError(f"a block of {family.name} with heads of width {width} cannot have the shape {shape}")
    linears = {n: m for n, m in block.named_modules() if isinstance(m, (nn.Linear, Conv1D))}
    hidden = next((_size(linears[n])[0] for n in (family.qkvo[-1], family.down) if n in linears), 0)
    sizes = _sizes(family, shape, hidden)
    if lacking := sizes.keys() - linears.keys():
        raise ValueError(f"a block without {min(lacking)} cannot have the shape {shape}")
    for name, size in sizes.items():
        _resize_(linears[name], *size)
    if shape.linear_attention:
        _bias_(*(linears.get(n) for n in family.qkvo[-2:]))
    settle_(block, family, shape, norm_first=norm_first)


def settle_(block: nn.Module, family: Any, shape: Any, *, norm_first: bool) -> None:
    """Take away what the shape lacks, and set what the attention module computes with."""
    if shape.heads == 0:
        _without_heads_(block, family, shape)
    else:
        each, width = shape.heads // shape.kv_heads, shape.heads * shape.head_dim
        for kind, value in {"counts": shape.heads, "widths": width, "groups": each}.items():
            for name in getattr(family, kind):
                setattr(block.get_submodule(family.core), name, value)
    if shape.ffn == 0:
        _without_neurons_(block, family, shape.linear_ffn)
    if norm_first:
        read = (shape.heads or shape.linear_attention, shape.ffn or shape.linear_ffn)
        for name, there in zip(family.norms, read, strict=True):
            if not there:
                block.set_submodule(name, nn.Identity())


def put_(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Put another tensor in place of a parameter."""
    setattr(module, name, nn.Parameter(tensor, requires_grad=getattr(module, name).requires_grad))


def _sizes(family: Any, shape: Any, hidden: int) -> dict[str, tuple[int | None, int | None]]:
    """Return rows and columns of the linears that the shape has, None where they do not depend on it."""
    queries, keys = (n * shape.head_dim for n in (shape.heads, shape.kv_heads))
    *qkv, output = family.qkvo
    sizes: dict[str, tuple[int | None, int | None]] = {}
    if shape.heads:
        rows = [3 * queries] if len(qkv) == 1 else [queries, keys, keys]
        sizes |= {**{n: (r, None) for n, r in zip(qkv, rows, strict=True)}, output: (None, queries)}
    if shape.ffn:
        sizes |= {**dict.fromkeys(family.up, (shape.ffn, None)), family.down: (None, shape.ffn)}
    stand_ins = {output: shape.linear_attention, family.down: shape.linear_ffn}
    return sizes | {n: (None, hidden) for n, stands in stand_ins.items() if stands}


def _bias_(values: nn.Module | None, output: Any) -> None:
    """Let the stand-in for attention add what the values' biases come to, also where its linear had no bias."""
    given = getattr(values, "bias", None)
    if given is not None and output.bias is None:
        output.bias = nn.Parameter(given.data.new_zeros(len(output.weight)), requires_grad=given.requires_grad)


def _without_heads_(block: nn.Module, family: Any, shape: Any) -> None:
    core: Any = block.get_submodule(family.core)
    output, stays = family.qkvo[-1], shape.linear_attention
    inside = output.startswith(f"{family.core}.")
    through = NoOutput() if not stays else block.get_submodule(output) if inside else nn.Identity()
    name = output.rpartition(".")[2]
    block.set_submodule(family.core, NoAttention(core.layer_idx, name, through, **{family.head_dim: shape.head_dim}))
    if not (inside or stays):
        block.set_submodule(output, nn.Identity())


def _without_neurons_(block: nn.Module, family: Any, stays: bool) -> None:
    first, *more = family.ffn
    if not more:
        name = family.down.removeprefix(f"{first}.")
        through = nn.Sequential(OrderedDict({name: block.get_submodule(family.down)})) if stays else NoOutput()
        block.set_submodule(first, through)
        return
    for name in (*family.up, family.activation):
        block.set_submodule(name, nn.Identity())
    if not stays:
        block.set_submodule(family.down, NoOutput())


def _resize_(linear: Any, rows: int | None, columns: int | None) -> None:
    stored, old = isinstance(linear, Conv1D), _size(linear)  # [in, out]
    new = (old[0] if rows is None else rows, old[1] if columns is None else columns)
    if new == old:
        return
    put_(linear, "weight", linear.weight.data.new_zeros(new[::-1] if stored else new))
    if linear.bias is not None and new[0] != old[0]:
        put_(linear, "bias", linear.bias.data.new_zeros(new[0]))
    for name, size in zip(("nf", "nx") if stored else ("out_features", "in_features"), new, strict=True):
        setattr(linear, name, size)


def _size(linear: Any) -> tuple[int, int]:
    """Return rows and columns, as `[out, in]` has them."""
    rows, columns = linear.weight.shape[::-1] if isinstance(linear, Conv1D) else linear.weight.shape
    return rows, columns


class Config(tf.PreTrainedConfig):  # type: ignore[no-untyped-call]
    """Reads the configuration of the architecture, and keeps with it what is said of the blocks."""

    model_type = "compress"

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Return it, in a class that `transformers` takes for no other model's."""
        plain = tf.CONFIG_MAPPING[config_dict["parent_type"]]
        found: Any = plain.from_dict(dict(config_dict["parent"]), **kwargs)
        config = found[0] if isinstance(found, tuple) else found
        config.__class__ = type("Config", (plain,), {"__module__": __name__})
        config.shaped, config.auto_map = config_dict, config_dict["auto_map"]
        return found


class Causal:
    """Opens a causal language model: the architecture's own, with these blocks."""

    auto: Any = tf.AutoModelForCausalLM

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """Do nothing: what is open here is not saved here."""

    @classmethod
    def from_pretrained(cls, source: str, *args: Any, config: Any, **kwargs: Any) -> Any:
        """Return the model, or what else `from_pretrained` of its own class was asked for."""
        plain = cls.auto._model_mapping[type(config).__mro__[1]]
        found = _shaped(plain).from_pretrained(source, *args, config=config, **kwargs)
        if config.shaped["branches"]:
            where = {k: kwargs[k] for k in ("cache_dir", "revision", "token", "local_files_only") if k in kwargs}
            model = found[0] if isinstance(found, tuple) else found
            _branch_(model, load_file(str(cached_file(source, "branches.safetensors", **where))))
        return found


class Classifier(Causal):
    """Opens a model that gives texts labels or numbers."""

    auto = tf.AutoModelForSequenceClassification


class Bare(Causal):
    """Opens a model without its head."""

    auto = tf.AutoModel


def _shaped(plain: Any) -> Any:
    """Return a class that makes the model with blocks of its configuration's shapes."""

    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        plain.__init__(self, config, *args, **kwargs)
        family, stack = _parts(self)
        norm_first = bool(family.norms) and getattr(config, "do_layer_norm_before", True)
        for block, shape in zip(stack, config.shaped["blocks"], strict=True):
            reshape_(block, family, SimpleNamespace(**shape), norm_first=norm_first)

    def save_pretrained(self: Any, *_: Any, **__: Any) -> None:
        raise OSError("blocks of unlike shapes cannot be saved here; copy the folder, or go on from it with compress")

    made = {"__init__": __init__, "save_pretrained": save_pretrained, "__module__": plain.__module__}
    return type(plain.__name__, (plain,), made)


def _parts(model: Any) -> tuple[Any, Any]:
    family = SimpleNamespace(**model.config.shaped["family"])
    return family, getattr(model, family.backbone, model).get_submodule(family.blocks)


def _branch_(model: Any, tensors: dict[str, Tensor]) -> None:
    """Put branches beside their linears: `x a^T b^T` is added to what a linear gives for x."""
    family, stack = _parts(model)
    for name in model.config.shaped["branches"]:
        linear = stack.get_submodule(name.partition(f"{family.blocks}.")[2])
        for part in ("a", "b"):
            setattr(linear, part, nn.Parameter(tensors[f"{name}.{part}"].to(linear.weight.device, model.dtype)))
        linear.register_forward_hook(lambda own, args, output: output + product(product(args[0], own.a), own.b))
