"""Real engines of random weights: every shape is exported once, in one model, and then stacked as often as asked."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compress import blocks, files, loading, registry, tree
from compress.artifact import Artifact
from compress.context import Context
from compress.contracts import Exporter, Target
from compress.errors import BadSettings, Unavailable
from compress.facts import BlockConfig, GridFact, Task
from compress.grid import DTYPES, Grid, bounds, groups, spread
from profiles import _precision
from profiles._parts import Attention, Base, Choice, Ffn, Part
from profiles._stack import Names, Pieces, stack, write

GRAPH = "model.onnx"
SMALL = 251  # tokens of the traced vocabulary: few, so that the head does not drown the blocks, and no size of theirs


class Workshop:
    """One traced model that holds each choice once, and the engines made of it.

    Args:
        config: of the architecture; its sizes outside the blocks are kept but the vocabulary, which is small.
        task: what such models are for.
        choices: at least one; all of one family and hidden size.
        target: what the engines are for.
        folder: where the trace goes.
        seed: of the weights.

    Raises:
        BadSettings: choices that cannot stand in one model, or kernels that this target does not have.
        Unavailable: the runtime is not here.
    """

    def __init__(
        self, config: Any, task: Task, choices: Sequence[Choice], target: Target, folder: Path, seed: int = 0
    ) -> None:
        self.choices, self._target = tuple(dict.fromkeys(choices)), target
        if len({(c.part.family, c.part.hidden) for c in self.choices}) != 1:
            raise BadSettings("parts of one profile run must have one family and one hidden size", key="shape")
        artifact = sampler(config, task, (*self.choices, self.choices[0]), seed)  # the last one is never used
        exporter = exporter_for(target)
        folder.mkdir(parents=True, exist_ok=True)
        context = Context(folder=folder, seed=seed)
        exported = exporter.export(artifact, folder, context, target)
        self._facts = dict(exported.facts)
        self._files = {"exact": folder}
        for variant in exported.variants:
            made = self._files[variant.name] = folder / variant.name.replace(" ", "-")
            made.mkdir(exist_ok=True)
            self._facts[variant.name] = variant.write(made).facts
        self._names = names_of(artifact)
        self._pieces = {n: Pieces(ir.load(f / GRAPH), self._names) for n, f in self._files.items()}

    def build(self, order: Sequence[Choice], folder: Path, vocabulary: int | None = None) -> Path:
        """Write an engine of some of the parts into a new folder, and return it.

        Args:
            order: which part stands where.
            folder: to make.
            vocabulary: of embedding and head; small unless given.

        Raises:
            BadSettings: parts of kernels that one engine cannot have together.
        """
        kinds = {_precision.parse(c.precision).kernels for c in order if _precision.parse(c.precision).grid}
        if len(kinds) > 1:
            raise BadSettings("exact and fast kernels cannot be in one engine", key="precision")
        variant = "exact" if kinds <= {"exact"} else next(reversed(self._pieces))
        folder.mkdir(parents=True)
        made = stack(self._pieces[variant], [self.choices.index(c) for c in order], vocabulary)
        write(made, folder / GRAPH)
        session = (self._facts if variant == "exact" else self._facts[variant]).get("session", {})
        card = {"graph": GRAPH, "session": session, "precision": self._target.precision}
        files.write_json(folder / "engine.json", card)
        return folder


def names_of(artifact: Artifact) -> Names:
    """Return what the parts of a model are called."""
    prefixes, state = tuple(tree.blocks(artifact.model)), artifact.model.state_dict()
    embedding = artifact.model.get_input_embeddings().get_parameter("weight")
    outside = frozenset(n for n in state if not n.startswith(tuple(f"{p}." for p in prefixes)))
    same = frozenset(n for n in outside if state[n].data_ptr() == embedding.data_ptr())
    return Names(blocks=prefixes, outside=outside, embedding=same)


def sampler(config: Any, task: Task, choices: Sequence[Choice], seed: int, vocabulary: int = SMALL) -> Artifact:
    """Return a model with one block for each choice, of which only that part is there."""
    config = copy.deepcopy(config)
    config.vocab_size = vocabulary
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if isinstance(number := getattr(config, name, None), int) and number >= vocabulary:
            setattr(config, name, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = plain(config, task, len(choices))
        width = tree.layout(model)[0].head_dim
        fill_(model, [_config(c.part, width) for c in choices])
        codes = {}
        for block, choice in zip(tree.blocks(model), choices, strict=True):
            for name, linear in tree.block_linears(model).items():
                if name.startswith(f"{block}."):
                    kept = kept_of(linear.weight, choice.pattern)
                    linear.weight.data *= kept
                    if fact := _precision.parse(choice.precision).grid:
                        codes[name] = grid_(linear, kept, fact)
    tokenizer: Any = None  # nothing here reads texts
    return Artifact(model=model, tokenizer=tokenizer, task=task, grids=codes)


def plain(config: Any, task: Task, count: int) -> PreTrainedModel:
    """Return a fresh model of an architecture, with so many blocks; linears `[out, in]`."""
    config = copy.deepcopy(config)
    config.num_hidden_layers = count
    if kinds := getattr(config, "layer_types", None):
        config.layer_types = [kinds[0]] * count
    with loading.quiet():
        model: PreTrainedModel = loading.CLASSES[task].from_config(config).eval()
    tree.linearise_(model)
    return model


def fill_(model: PreTrainedModel, layout: Sequence[BlockConfig]) -> None:
    """Give the blocks their shapes, and every parameter random values: equal ones would be stored once."""
    blocks.shape_(model, layout)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)


def _config(part: Part, width: int) -> BlockConfig:
    assert not isinstance(part, Base)
    if isinstance(part, Attention):
        if part.head_dim != width:
            raise BadSettings(f"heads of this model are {width} wide, got {part}", key="shape")
        return BlockConfig(heads=part.heads, kv_heads=part.kv_heads, head_dim=width, ffn=0)
    none = BlockConfig(heads=0, kv_heads=0, head_dim=width, ffn=0)
    if isinstance(part, Ffn):
        return dataclasses.replace(none, ffn=part.neurons)
    return dataclasses.replace(none, linear_attention=part.place == "attention", linear_ffn=part.place == "ffn")


def kept_of(weight: Tensor, pattern: str) -> Tensor:
    """Return which weights stay: of N:M the first N of every M inputs, half of them without a pattern."""
    if pattern == "dense":
        return torch.ones_like(weight, dtype=torch.bool)
    if pattern == "unstructured":
        return torch.rand_like(weight) < 0.5
    few, many = map(int, pattern.split(":"))
    return (torch.arange(weight.shape[1]) % many < few).expand_as(weight)


def grid_(linear: nn.Linear, kept: Tensor, fact: GridFact) -> Grid:
    """Give a linear random codes: their values do not matter to the clock, nor do steps as long as they are sound.

    Args:
        linear: its weight becomes what the codes stand for.
        kept: bool `[out, in]`; the other codes stand for 0.
        fact: which codes.
    """
    low, high = bounds(fact.bits)
    many = (linear.out_features, groups(linear.in_features, fact.group_size))
    zero = torch.randint(low, high + 1, many, dtype=torch.int8) if fact.zero else None
    codes = torch.randint(low, high + 1, linear.weight.shape, dtype=torch.int8)
    at_zero = torch.zeros_like(codes) if zero is None else spread(zero, linear.in_features, fact.group_size)
    grid = Grid(
        bits=fact.bits, group_size=fact.group_size, codes=torch.where(kept, codes, at_zero).to(DTYPES[fact.format]),
        scale=(torch.rand(many) + 0.5) / (high * linear.in_features**0.5),
        zero=zero, offset=torch.zeros(many) if fact.offset else None, activation=fact.activation,
        input_scale=torch.tensor(1 / 32) if fact.activation == "static" else None,
    )  # fmt: skip
    linear.weight.data = grid.dequantized()
    return grid


def exporter_for(target: Target) -> Exporter:
    """Return the exporter that writes what the target's runtime opens."""
    for name in registry.names("exporters"):
        found = registry.load("exporters", name, Exporter)
        if target.runtime in found.runtimes:
            exporter = found(found.Settings())
            if missing := exporter.available():
                raise Unavailable(missing)
            return exporter
    raise BadSettings(f"no exporter writes engines for {target.runtime!r}", key="runtime")
