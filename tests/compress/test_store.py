"""Models that stay on disk: the same bits as in memory, a block at a time, whatever happens on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from compress import artifact as artifacts
from compress import files, loading, tensors, tree
from compress.artifact import Artifact
from compress.context import Context
from compress.errors import BadModel, BrokenPromise
from passes.magnitude import Magnitude
from tests.conftest import CAUSAL, ENCODERS

Tiny = Callable[..., Artifact]


def saved(artifact: Artifact, folder: Path) -> Path:
    folder.mkdir(parents=True)
    artifact.save(folder)
    return folder


def same(a: Artifact, b: Artifact) -> None:
    """Both hold the same names, bits and masks."""
    assert a.tensor_names() == b.tensor_names()
    for name in a.tensor_names():
        assert tensors.same_bits(a.tensor(name), b.tensor(name)), name
    assert set(a.masks) == set(b.masks)
    assert all(torch.equal(m, b.masks[n]) for n, m in a.masks.items())


def inside(artifact: Artifact) -> list[torch.nn.Parameter]:
    return [p for block in tree.blocks(artifact.model).values() for p in block.parameters()]


@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODERS])
def test_what_is_outside_the_blocks_is_real_and_what_is_inside_is_read(tiny: Tiny, kind: str, tmp_path: Path) -> None:
    folder = saved(tiny(kind), tmp_path / "a")
    whole, stored = Artifact.load(folder), Artifact.load(folder, stored=True)
    assert all(p.is_meta for p in inside(stored))
    within = {id(p) for p in inside(stored)}
    assert not any(p.is_meta for p in stored.model.parameters() if id(p) not in within)
    for (name, ours), (other, theirs) in zip(stored.model.named_buffers(), whole.model.named_buffers(), strict=True):
        assert name == other
        assert tensors.same_bits(ours, theirs)
    same(whole, stored)
    assert tree.facts(whole.model, whole.task) == tree.facts(stored.model, stored.task)
    assert tree.tied(stored.model) == tree.tied(whole.model)
    assert stored.model.config.to_dict() == whole.model.config.to_dict()
    assert not stored.model.training


@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODERS])
def test_a_pass_gives_the_same_bits_from_disk_and_from_memory(tiny: Tiny, kind: str, tmp_path: Path) -> None:
    folder = saved(tiny(kind), tmp_path / "a")
    plugin = Magnitude(Magnitude.Settings(sparsity=0.6))
    done = []
    for stored in (False, True):
        given = Artifact.load(folder, stored=stored)
        after = plugin.run(given, Context(folder=tmp_path))
        out = saved(after, tmp_path / f"b{stored}")
        for opened in (False, True):
            plugin.ensures(Artifact.load(folder, stored=opened), Artifact.load(out, stored=not opened))
        done.append(out)
    in_memory, streamed = (Artifact.load(f) for f in done)
    same(in_memory, streamed)
    same(in_memory, Artifact.load(done[1], stored=True))
    for name in (
        "config.json",
        "tokenizer.json",
        "masks.safetensors",
        *(["generation_config.json"] * (kind in CAUSAL)),
    ):
        assert (done[0] / name).read_bytes() == (done[1] / name).read_bytes()
    loaders: Any = tf.AutoModelForCausalLM if kind in CAUSAL else tf.AutoModelForSequenceClassification
    plain, told = loaders.from_pretrained(done[1], output_loading_info=True)
    assert not (told["missing_keys"] or told["unexpected_keys"] or told["mismatched_keys"])
    tree.linearise_(plain)
    state = in_memory.model.state_dict()
    assert all(torch.equal(t, state[n]) for n, t in plain.state_dict().items())
