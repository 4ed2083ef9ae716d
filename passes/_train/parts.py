"""What of a model is trained as it is, beside any reparametrisation."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

import torch
from torch import nn
from transformers import PreTrainedModel

from compress import tree
from compress.artifact import Artifact
from compress.facts import Facts


def norms_of(facts: Facts) -> list[str]:
    """Return the parameters of all norms by name, their biases too."""
    modules = {n.rpartition(".")[0] for n in facts.norms}
    return [*facts.norms, *(n for n in facts.biases if n.rpartition(".")[0] in modules)]


def classifier(model: PreTrainedModel) -> list[str]:
    """Return the parameters of a task model outside its backbone."""
    inner = {id(p) for p in tree.backbone(model).parameters()}
    return [n for n, p in model.named_parameters() if id(p) not in inner]


def heads_of(artifact: Artifact) -> list[str]:
    """Return the parameters of a task model's classifier; a language model's head stays as it is."""
    return classifier(artifact.model) if artifact.task != "causal-lm" else []


def whole_names(model: PreTrainedModel, linears: Collection[str]) -> list[str]:
    """Return the parameters of a model trained whole, but for block linears that are not among the given ones."""
    left = tree.block_linears(model).keys() - set(linears)
    return [n for n, _ in model.named_parameters(remove_duplicate=False) if n.rpartition(".")[0] not in left]


def count_whole(facts: Facts, linears: Collection[str]) -> int:
    """Return how many numbers these are, pruned weights left out."""
    frozen = sum(size_of(facts, n) for n in facts.shapes if n not in linears)
    return facts.parameters - frozen - sum(pruned_of(facts, n) for n in linears)


def size_of(facts: Facts, name: str) -> int:
    """Return the parameters of a linear: weight, bias and branch."""
    shape = facts.shapes[name]
    return math.prod(shape) + facts.biases.get(f"{name}.bias", 0) + facts.branches.get(name, 0) * sum(shape)


def pruned_of(facts: Facts, name: str) -> int:
    """Return how many weights of a linear are pruned."""
    fact = facts.masks.get(name)
    return round(fact.sparsity * math.prod(facts.shapes[name])) if fact else 0


def thaw_(parameters: Iterable[nn.Parameter]) -> None:
    """Let parameters take gradients, held in fp32 at least; `frozen` gives their own precision back at its end."""
    for parameter in parameters:
        parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
        parameter.requires_grad_(True)
