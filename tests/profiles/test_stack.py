"""Engines stacked of traced blocks are the models they stand for: the same numbers, and as many weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from transformers import AutoConfig, PreTrainedModel

from compress import tree
from compress.contracts import Target
from compress.errors import BadSettings, CompressError
from profiles import _build
from profiles._build import SMALL, Workshop
from profiles._parts import Attention, Choice, Ffn, Linear
from profiles._stack import Names, Pieces

SIZES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64},
    "qwen3": {"hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16},
    "gpt2": {"n_embd": 48, "n_head": 4, "n_positions": 64},
    "bert": {"hidden_size": 48, "num_attention_heads": 4, "max_position_embeddings": 64},
}
CODES = "int4-g16-exact"


def _choices(family: str) -> tuple[Choice, ...]:
    groups, width = (2, 16 if family == "qwen3" else 12) if family in ("llama", "qwen3") else (4, 12)
    shape: dict[str, Any] = {"family": family, "hidden": 48}
    wide, narrow = (Attention(**shape, heads=2 * n, kv_heads=n, head_dim=width) for n in (2, 1))
    if groups == 4:
        wide, narrow = (Attention(**shape, heads=n, kv_heads=n, head_dim=width) for n in (4, 1))
    ffn, coded = Ffn(**shape, neurons=96), Ffn(**shape, neurons=40)
    return (
        Choice(part=wide), Choice(part=ffn), Choice(part=narrow), Choice(part=coded, precision=CODES),
        Choice(part=Linear(**shape, place="attention")), Choice(part=Linear(**shape, place="ffn"), precision=CODES),
    )  # fmt: skip


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Workshop, PreTrainedModel]]:
    made: dict[str, tuple[Workshop, PreTrainedModel]] = {}

    def make(family: str) -> tuple[Workshop, PreTrainedModel]:
        if family not in made:
            config = AutoConfig.for_model(family, vocab_size=100, **SIZES[family])
            task: Any = "causal-lm" if family != "bert" else "classification"
            choices = _choices(family)
            model = _build.sampler(config, task, (*choices, choices[0]), 0).model
            made[family] = (Workshop(config, task, choices, Target(), tmp_path_factory.mktemp(family)), model)
        return made[family]

    return make


def _reordered(model: PreTrainedModel, order: list[int]) -> PreTrainedModel:
    """The torch model of some of the sampler's blocks, each copy a block of its own."""
    found = copy.deepcopy(model)
    stack: Any = tree.backbone(found).get_submodule(tree.family(found).blocks)
    blocks = [copy.deepcopy(stack[i]) for i in order]
    for place, block in enumerate(blocks):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = place
    del stack[:]
    stack.extend(blocks)
    found.config.num_hidden_layers = len(blocks)
    if getattr(found.config, "layer_types", None):
        found.config.layer_types = [found.config.layer_types[0]] * len(blocks)
    found.eval()  # type: ignore[no-untyped-call]
    return found


ORDERS = ([0, 1, 2, 3], [3, 2, 0, 0, 1, 1], [2], [1, 3, 1], [1, 0], [4, 1, 0, 5, 4])


@pytest.mark.parametrize("family", ["llama", *(pytest.param(f, marks=pytest.mark.slow) for f in ("qwen3", "gpt2"))])
def test_a_stack_computes_what_such_a_model_does(family: str, shop: Any, tmp_path: Path) -> None:
    workshop, model = shop(family)
    for number, order in enumerate(ORDERS):
        folder = workshop.build([workshop.choices[i] for i in order], tmp_path / str(number))
        session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
        tokens, reference = torch.randint(2, SMALL, (2, 9)), _reordered(model, order)
        with torch.no_grad():
            whole = reference(input_ids=tokens, use_cache=False).logits
        past: dict[str, np.ndarray] = {
            i.name: np.zeros((2, i.shape[1], 0, i.shape[3]), np.float32)
            for i in session.get_inputs() if i.name.startswith("past")
        }  # fmt: skip
        names = [o.name for o in session.get_outputs()]
        for start, end in ((0, 6), (6, 9)):
            positions = np.tile(np.arange(start, end), (2, 1))
            given = {
                "input_ids": tokens[:, start:end].numpy(), "attention_mask": np.ones((2, end), np.int64),
                "position_ids": positions, **past,
            }  # fmt: skip
            logits, *present = session.run(None, {i.name: given[i.name] for i in session.get_inputs()})
            np.testing.assert_allclose(logits, whole[:, start:end].numpy(), atol=2e-5)
            past = dict(zip((n.replace("present", "past_key_values") for n in names[1:]), present, strict=True))
        attention = sum(isinstance(workshop.choices[i].part, Attention) for i in order)
        assert len(past) == 2 * attention


def test_an_encoder_is_stacked_too(shop: Any, tmp_path: Path) -> None:
    workshop, model = shop("bert")
    for number, order in enumerate(ORDERS):
        folder = workshop.build([workshop.choices[i] for i in order], tmp_path / str(number))
        session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
        tokens = torch.randint(2, SMALL, (2, 9))
        with torch.no_grad():
            wanted = _reordered(model, order)(input_ids=tokens).logits
        given = {"input_ids": tokens.numpy(), "attention_mask": np.ones((2, 9), np.int64)}
        given["token_type_ids"] = np.zeros((2, 9), np.int64)
        logits = session.run(None, {i.name: given[i.name] for i in session.get_inputs()})[0]
        np.testing.assert_allclose(logits, wanted.numpy(), atol=2e-5)


def test_every_copy_has_weights_of_its_own_and_the_head_any_vocabulary(shop: Any, tmp_path: Path) -> None:
    workshop, _ = shop("llama")
    ffn = workshop.choices[1]
    for copies, vocabulary in ((1, None), (3, 1000)):
        folder = workshop.build((ffn,) * copies, tmp_path / str(copies), vocabulary)
        weights = ir.load(folder / "model.onnx").graph.initializers
        sizes = [int(np.prod(v.shape.numpy())) for n, v in weights.items() if ".mlp." in n and v.shape is not None]
        assert sum(sizes) == copies * ffn.part.weights
        session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
        assert session.get_outputs()[0].shape[-1] == (vocabulary or SMALL)
        tokens = np.full((1, 2), (vocabulary or SMALL) - 1, np.int64)
        given = {"input_ids": tokens, "attention_mask": np.ones_like(tokens), "position_ids": np.arange(2)[None]}
        assert session.run(["logits"], {i.name: given[i.name] for i in session.get_inputs()})[0].shape[1] == 2


def test_patterns_are_in_the_weights(shop: Any, tmp_path: Path) -> None:
    kept = _build.kept_of(torch.ones(3, 10), "2:4")
    assert kept[1].tolist() == [True, True, False, False] * 2 + [True, True]
    exact = shop("llama")[0].choices[3]
    fast = exact.model_copy(update={"precision": "int4-g16"})
    with pytest.raises(BadSettings, match="exact and fast kernels cannot be in one engine"):
        shop("llama")[0].build([exact, fast], tmp_path / "both")


def test_what_cannot_be_cut_is_told() -> None:
    """A third block that reads what the first one made, beside the second one's result."""
    embedding = [f"b.{i}.w" for i in range(3)]
    values = [ir.val(n, ir.DataType.FLOAT, [2, 2]) for n in ("embed", *embedding)]
    for value in values:
        value.const_value = ir.tensor(np.eye(2, dtype=np.float32), name=value.name)
    given, nodes = ir.val("input_ids", ir.DataType.FLOAT, [2, 2]), list[ir.Node]()
    for value in values:
        nodes.append(ir.node("MatMul", [nodes[-1].outputs[0] if nodes else given, value]))
    names = Names(
        blocks=("b.0", "b.1", "b.2"), outside=frozenset({"embed"}), embedding=frozenset({"embed"})
    )  # fmt: skip

    def cut(*nodes: ir.Node) -> Pieces:
        graph = ir.Graph([given], [nodes[-1].outputs[0]], nodes=nodes, initializers=values, opset_imports={"": 20})
        return Pieces(ir.Model(graph, ir_version=10), names)

    over = ir.node("Add", [nodes[-1].outputs[0], nodes[1].outputs[0]])
    with pytest.raises(CompressError, match=r"cannot be cut between its blocks: .* pass over one"):
        cut(*nodes, over)
