"""What of a model is trained as it is, beside any reparametrisation."""

from __future__ import annotations

from collections.abc import Iterable

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


def thaw_(parameters: Iterable[nn.Parameter]) -> None:
    """Let parameters take gradients, held in fp32 at least; `frozen` gives their own precision back at its end."""
    for parameter in parameters:
        parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
        parameter.requires_grad_(True)
