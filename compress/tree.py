"""Walk a model by role: blocks, attention, FFN, linears, norms, biases, head; always under the model's own names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from compress.branched import Branched
from compress.errors import BadSettings
from compress.facts import BlockConfig, Facts, Task
from compress.families import Family, families, family_of


def family(model: PreTrainedModel) -> Family:
    """Return the table of the model's architecture."""
    return family_of(model.config.model_type)


def backbone(model: PreTrainedModel) -> nn.Module:
    """Return the bare model without its head; the model itself where it has none."""
    inner = getattr(model, family(model).backbone, None)
    return inner if isinstance(inner, nn.Module) else model


def blocks(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Return the decoder or encoder blocks by name, first to last."""
    stack = backbone(model).get_submodule(family(model).blocks)
    names = {id(m): n for n, m in model.named_modules()}
    return {names[id(block)]: block for block in stack.children()}


def block_linears(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """Return every linear inside the blocks by name; the head, pooler and embeddings are never among them."""
    return {
        f"{name}.{inner}": module
        for name, block in blocks(model).items()
        for inner, module in block.named_modules()
        if isinstance(module, nn.Linear)
    }


def layout(model: PreTrainedModel) -> tuple[BlockConfig, ...]:
    """Return the shape of every block, read from its linears; those of a transposed family must be linearised."""
    table = family(model)
    return tuple(shape(block, table) for block in blocks(model).values())


def shape(block: nn.Module, table: Family) -> BlockConfig:
    """Return the shape of one block of a family, read from its linears."""
    linears = {n: m for n, m in block.named_modules() if isinstance(m, nn.Linear)}
    width: int = getattr(block.get_submodule(table.core), table.head_dim)
    rows = [linears[n].out_features // width for n in table.qkvo[:-1] if n in linears] or [0, 0]
    heads, kv_heads = (rows[0] // 3, rows[0] // 3) if table.fused else rows[:2]
    ffn = linears[table.up[0]].out_features if table.up[0] in linears else 0
    return BlockConfig(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=width,
        ffn=ffn,
        linear_attention=heads == 0 and table.qkvo[-1] in linears,
        linear_ffn=ffn == 0 and table.down in linears,
    )


def ranks(model: PreTrainedModel) -> dict[str, int]:
    """Return the ranks of the branches by the names of their linears, sorted."""
    return {n: m.rank for n, m in sorted(block_linears(model).items()) if isinstance(m, Branched)}


def norm_first(model: PreTrainedModel) -> bool:
    """Tell whether attention and FFN read a norm's output (true), or the norm reads theirs with the residual."""
    return bool(family(model).norms) and getattr(model.config, "do_layer_norm_before", True)


def select(names: Sequence[str], include: Sequence[str], exclude: Sequence[str]) -> list[str]:
    """Return the names that the patterns choose, in order.

    A pattern is a name with `*` and `?`, matched against the whole name, or a part of the name between dots
    (`q_proj`, `layers.0`).

    Raises:
        BadSettings: a pattern matches nothing, or nothing is left.
    """
    for key, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            if not any(_matches(n, pattern) for n in names):
                raise BadSettings(f"{pattern!r} matches no linear; there are {_some(names)}", key=key)
    chosen = [n for n in names if not include or any(_matches(n, p) for p in include)]
    chosen = [n for n in chosen if not any(_matches(n, p) for p in exclude)]
    if not chosen:
        raise BadSettings(f"excludes every linear; there are {_some(names)}", key="exclude")
    return chosen


def norms(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Return every norm's parameters but biases, by parameter name (the final norm's and q/k norms too)."""
    return {
        f"{name}.{inner}": parameter
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
        for inner, parameter in module.named_parameters(recurse=False)
        if inner != "bias"
    }


def biases(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Return every bias of the model by parameter name, those of norms too."""
    return {n: p for n, p in model.named_parameters() if n.rpartition(".")[2] == "bias"}


def head(model: PreTrainedModel) -> tuple[str, nn.Linear] | None:
    """Return the name and the linear of the causal model's output head, if it has one."""
    name = family(model).head
    module = getattr(model, name, None) if name else None
    return (name, module) if name and isinstance(module, nn.Linear) else None


def tied(model: PreTrainedModel) -> bool:
    """Tell whether the output head and the input embedding are one tensor."""
    found = head(model)
    return found is not None and found[1].weight is model.get_input_embeddings().weight


def replace_(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put another module at a name."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def linearise_(model: PreTrainedModel) -> None:
    """Turn every Conv1D `[in, out]` into a Linear `[out, in]`, so that all methods see one layout."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            replace_(model, name, _linear(module))


def stored_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the state under the layout that the architecture stores: linears of a transposed family go back."""
    state: dict[str, Tensor] = model.state_dict()
    if family(model).transposed:
        for name in block_linears(model):
            state[f"{name}.weight"] = state[f"{name}.weight"].t().contiguous()
    return state


def positions(model: PreTrainedModel) -> int | None:
    """Return the longest sequence that the model takes, None without a limit of its own.

    RoBERTa's first position comes after its padding index, so that its table has that many rows more.
    """
    rows: int | None = getattr(model.config, "max_position_embeddings", None)
    tables = (m for n, m in model.named_modules() if n.endswith("position_embeddings"))
    unused = next((m.padding_idx + 1 for m in tables if getattr(m, "padding_idx", None) is not None), 0)
    return rows - unused if rows is not None else None


def held(facts: Facts) -> int:
    """Return how many parameters are in memory at once: all, or of stored blocks the largest alone."""
    if not facts.stored:
        return facts.parameters
    of_block: Counter[str] = Counter()
    sizes: dict[str, int] = {n: out * inputs for n, (out, inputs) in facts.shapes.items()}
    sizes |= {**facts.biases, **facts.norms}
    sizes |= {f"{n}.branch": rank * sum(facts.shapes[n]) for n, rank in facts.branches.items()}
    stack = families()[facts.family].blocks
    for name, size in sizes.items():
        _, inside, rest = f".{name}".partition(f".{stack}.")
        if inside:
            of_block[rest.partition(".")[0]] += size
    return facts.parameters - of_block.total() + max(of_block.values())


def facts(model: PreTrainedModel, task: Task) -> Facts:
    """Return what is known of the model from its shapes alone; a model on `meta` will do."""
    found = head(model)
    config: Any = model.config
    return Facts(
        family=family(model).name,
        task=task,
        tied=tied(model),
        shapes={n: (m.out_features, m.in_features) for n, m in block_linears(model).items()},
        biases={n: p.numel() for n, p in biases(model).items()},
        norms={n: p.numel() for n, p in norms(model).items()},
        head=(found[0], (found[1].out_features, found[1].in_features)) if found else None,
        parameters=sum(p.numel() for p in model.parameters()),
        vocabulary=config.vocab_size,
        positions=positions(model),
        layout=layout(model),
        branches=ranks(model),
    )


def _linear(module: Conv1D) -> nn.Linear:
    inputs, outputs = module.weight.shape
    linear = nn.Linear(inputs, outputs, device="meta")
    linear.weight = nn.Parameter(module.weight.detach().t().contiguous(), requires_grad=module.weight.requires_grad)
    linear.bias = module.bias
    return linear


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or f".{pattern}." in f".{name}."


def _some(names: Sequence[str]) -> str:
    last = list(dict.fromkeys(n.rpartition(".")[2] for n in names))
    return ", ".join(last[:12])
