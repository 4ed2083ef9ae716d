"""Every family's parts by role, and the patterns that choose among its linears."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import nn
from transformers.pytorch_utils import Conv1D

from compress import tree
from compress.artifact import Artifact
from compress.errors import BadModel, BadSettings
from compress.families import families, family_of
from tests.conftest import CAUSAL, ENCODERS

Tiny = Callable[..., Artifact]

LLAMA = {
    "self_attn.q_proj": (32, 32), "self_attn.k_proj": (16, 32), "self_attn.v_proj": (16, 32),
    "self_attn.o_proj": (32, 32), "mlp.gate_proj": (64, 32), "mlp.up_proj": (64, 32), "mlp.down_proj": (32, 64),
}  # fmt: skip
WIDE = LLAMA | {
    "self_attn.q_proj": (64, 32), "self_attn.k_proj": (32, 32), "self_attn.v_proj": (32, 32),
    "self_attn.o_proj": (32, 64),
}  # fmt: skip
OPT = {
    "self_attn.k_proj": (32, 32), "self_attn.v_proj": (32, 32), "self_attn.q_proj": (32, 32),
    "self_attn.out_proj": (32, 32), "fc1": (64, 32), "fc2": (32, 64),
}  # fmt: skip
GPT2 = {"attn.c_attn": (96, 32), "attn.c_proj": (32, 32), "mlp.c_fc": (128, 32), "mlp.c_proj": (32, 128)}
BERT = {
    "attention.self.query": (32, 32), "attention.self.key": (32, 32), "attention.self.value": (32, 32),
    "attention.output.dense": (32, 32), "intermediate.dense": (64, 32), "output.dense": (32, 64),
}  # fmt: skip

# block prefix; linears `[out, in]`; biases and norm parameters in the whole model; is the head tied
EXPECTED = {
    "llama": ("model.layers", LLAMA, 0, 5, False),
    "mistral": ("model.layers", LLAMA, 0, 5, False),
    "qwen2": ("model.layers", LLAMA, 6, 5, True),  # q, k and v have biases
    "qwen3": ("model.layers", WIDE, 0, 9, True),  # explicit head_dim 16; q_norm and k_norm
    "llama-tied": ("model.layers", WIDE, 0, 5, True),
    "opt": ("model.decoder.layers", OPT, 17, 5, True),
    "gpt2": ("transformer.h", GPT2, 13, 5, True),
    "bert": ("bert.encoder.layer", BERT, 19, 5, False),
    "roberta": ("roberta.encoder.layer", BERT, 19, 5, False),
}


@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODERS])
def test_parts_of_every_family(tiny: Tiny, kind: str) -> None:
    prefix, linears, biases, norms, tied = EXPECTED[kind]
    model = tiny(kind).model
    assert list(tree.blocks(model)) == [f"{prefix}.0", f"{prefix}.1"]
    found = {n: tuple(m.weight.shape) for n, m in tree.block_linears(model).items()}
    assert found == {f"{prefix}.{i}.{n}": shape for i in (0, 1) for n, shape in linears.items()}
    assert len(tree.biases(model)) == biases
    assert len(tree.norms(model)) == norms
    assert all(p.ndim == 1 for p in (*tree.norms(model).values(), *tree.biases(model).values()))
    assert not set(tree.norms(model)) & set(tree.biases(model))
    assert tree.tied(model) == tied
    head = tree.head(model)
    assert (head is not None) == (kind in CAUSAL)
    assert head is None or (head[0] == "lm_head" and head[1] is model.lm_head)


@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODERS])
def test_family_tables_name_what_is_there(tiny: Tiny, kind: str) -> None:
    model = tiny(kind).model
    table = tree.family(model)
    for block in tree.blocks(model).values():
        parts = dict(block.named_modules())
        assert {table.attention, *table.ffn} <= parts.keys()
        linears = {n for n, m in parts.items() if isinstance(m, nn.Linear)}
        assert {*table.qkvo, *table.up, table.down} == linears
        # `up` writes the neurons that `down` reads, and `down` comes back to the block's width.
        neurons = {parts[n].out_features for n in table.up}
        assert neurons == {parts[table.down].in_features}
        assert parts[table.down].out_features == parts[table.up[0]].in_features


def test_every_family_is_tested() -> None:
    kinds = {family_of(k.partition("-")[0]).name for k in EXPECTED}
    assert kinds == set(families())
    types = [t for f in families().values() for t in f.model_types]
    assert len(types) == len(set(types))


def test_an_unknown_architecture_is_named() -> None:
    with pytest.raises(BadModel, match="'mamba' is not supported; supported: bert, gpt2"):
        family_of("mamba")


@pytest.mark.parametrize("task", ["classification", "regression", "embedding"])
@pytest.mark.parametrize("kind", ["bert", "roberta", "llama"])
def test_blocks_are_found_under_every_task(tiny: Tiny, kind: str, task: str) -> None:
    model = tiny(kind, task=task).model
    assert len(tree.blocks(model)) == 2
    names = set(tree.block_linears(model))
    assert len(names) == 2 * len(EXPECTED[kind][1])
    assert not any(part in n for n in names for part in ("score", "classifier", "pooler"))
    assert all(model.get_submodule(n) is m for n, m in tree.block_linears(model).items())
    assert not tree.tied(model)


def test_facts_count_a_tied_head_once(tiny: Tiny) -> None:
    tied, untied = (tree.facts(tiny(k).model, "causal-lm") for k in ("llama-tied", "llama"))
    assert tied.tied
    assert not untied.tied
    assert tied.head == untied.head == ("lm_head", (384, 32))
    blocks = sum(a * b for a, b in untied.shapes.values())
    assert untied.parameters == blocks + sum(untied.norms.values()) + 2 * 384 * 32
    blocks = sum(a * b for a, b in tied.shapes.values())
    assert tied.parameters == blocks + sum(tied.norms.values()) + 384 * 32
    assert (tied.family, tied.vocabulary, tied.positions, tied.blocks) == ("llama", 384, 128, 2)


NAMES = [f"model.layers.{i}.{p}" for i in (0, 1, 10) for p in ("self_attn.q_proj", "mlp.up_proj")]


@pytest.mark.parametrize(
    ("include", "exclude", "chosen"),
    [
        ((), (), NAMES),
        (("q_proj",), (), NAMES[::2]),
        (("mlp",), (), NAMES[1::2]),
        (("layers.1",), (), NAMES[2:4]),  # not layers.10
        (("1.mlp",), (), NAMES[3:4]),
        (("model.layers.1*",), (), NAMES[2:]),
        (("*.up_proj", "layers.0"), (), [NAMES[0], NAMES[1], NAMES[3], NAMES[5]]),
        ((), ("mlp", "layers.0"), [NAMES[2], NAMES[4]]),
        (("mlp",), ("*.layers.1?.*", "*.0.*"), NAMES[3:4]),
        ((NAMES[4],), (), [NAMES[4]]),
    ],
)
def test_select(include: tuple[str, ...], exclude: tuple[str, ...], chosen: list[str]) -> None:
    assert tree.select(NAMES, include, exclude) == chosen


@pytest.mark.parametrize(
    ("include", "exclude", "key", "message"),
    [
        (("proj",), (), "include", "'proj' matches no linear; there are q_proj, up_proj"),
        (("mlp", "layers.2"), (), "include", "'layers.2' matches no linear"),
        ((), ("lm_head",), "exclude", "'lm_head' matches no linear"),
        (("mlp",), ("up_proj",), "exclude", "excludes every linear"),
    ],
)
def test_select_refuses_what_matches_nothing(
    include: tuple[str, ...], exclude: tuple[str, ...], key: str, message: str
) -> None:
    with pytest.raises(BadSettings, match=message) as caught:
        tree.select(NAMES, include, exclude)
    assert caught.value.key == key


def test_gpt2_is_linear_inside_and_conv1d_on_disk(tiny: Tiny, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = tiny("gpt2").model.config
    ours: Any = tf.AutoModelForCausalLM.from_config(config).eval()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for name, parameter in ours.named_parameters():  # biases and norms that are not all alike
            parameter.copy_(torch.randn_like(parameter) * 0.1 + name.endswith("ln_1.weight"))
    original = {n: t.clone() for n, t in ours.state_dict().items()}
    ids = torch.arange(24).view(2, 12)
    expected = ours(ids).logits
    tree.linearise_(ours)
    assert not any(isinstance(m, Conv1D) for m in ours.modules())
    fused = tree.block_linears(ours)["transformer.h.0.attn.c_attn"]
    assert torch.equal(fused.weight, original["transformer.h.0.attn.c_attn.weight"].t())
    # The same products summed in another order: a few ulp of logits of size 1.
    assert torch.allclose(ours(ids).logits, expected, atol=1e-5)
    stored = tree.stored_state(ours)
    assert stored.keys() == original.keys()
    assert all(torch.equal(stored[n], t) for n, t in original.items())
    ours.save_pretrained(tmp_path, state_dict=stored)
    again: Any = tf.AutoModelForCausalLM.from_pretrained(tmp_path).eval()  # type: ignore[no-untyped-call]
    assert isinstance(again.get_submodule("transformer.h.0.attn.c_attn"), Conv1D)
    assert all(torch.equal(again.state_dict()[n], t) for n, t in original.items())
    assert torch.equal(again(ids).logits, expected)


def test_replace_puts_a_module_at_a_name(tiny: Tiny) -> None:
    model = tiny("llama").model
    name = "model.layers.1.mlp.up_proj"
    other = nn.Linear(32, 64, bias=False)
    tree.replace_(model, name, other)
    assert tree.block_linears(model)[name] is other
