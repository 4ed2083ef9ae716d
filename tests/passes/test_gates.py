"""Learned gates: what a zero one removes, what the penalty lets go, and that nothing of them stays."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compress import blocks, tree
from compress.artifact import Artifact
from passes import _gates
from tests.conftest import CAUSAL, ENCODERS

Tiny = Callable[..., Artifact]
TOKENS = torch.arange(2, 26).view(2, 12)


def logits(artifact: Artifact) -> Tensor:
    with torch.no_grad():
        found: Tensor = artifact.model(TOKENS).logits
    return found


@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODERS])
def test_what_a_zero_gate_stands_before_is_as_good_as_removed(tiny: Tiny, kind: str) -> None:
    artifact = tiny(kind)
    model = artifact.model
    table, name, shape = tree.family(model), list(tree.blocks(model))[1], tree.layout(model)[1]
    head, down = f"{name}.{table.qkvo[-1]}", f"{name}.{table.down}"
    dense = logits(artifact)
    with _gates.gated(model, {head: shape.kv_heads, down: shape.ffn}) as gates:
        assert torch.equal(logits(artifact), dense)
        with torch.no_grad():
            gates[head][1] = 0
            gates[down][5:9] = 0
        shut = logits(artifact)
    assert torch.equal(logits(artifact), dense), "hooks are gone"
    assert not torch.allclose(shut, dense)
    heads = torch.tensor([i for i in range(shape.kv_heads) if i != 1])
    neurons = torch.tensor([i for i in range(shape.ffn) if not 5 <= i < 9])
    blocks.slice_(model, 1, kv_groups=heads, neurons=neurons)
    torch.testing.assert_close(logits(artifact), shut, atol=1e-5, rtol=1e-5)


class _Net(nn.Module):
    """Two linears; nothing reads the first neuron of the hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 4)
        self.down.weight.data[:, 0] = 0

    def forward(self, x: Tensor) -> Tensor:
        """Return [batch, 4]."""
        found: Tensor = self.down(functional.gelu(self.up(x)))
        return found


def test_the_penalty_shuts_what_the_loss_does_not_need() -> None:
    torch.manual_seed(0)
    net, x = _Net().requires_grad_(False), torch.randn(64, 6)
    net.down.weight[:, 1:].mul_(4)
    wanted = net(x)
    with _gates.gated(net, {"down": 8}) as gates:
        optimizer = torch.optim.Adam(gates.values(), lr=0.02)
        for _ in range(60):
            optimizer.zero_grad()
            loss = functional.mse_loss(net(x), wanted) + 1e-3 * _gates.penalty(gates.values())
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        gate = gates["down"].detach()
    assert abs(float(gate[0])) < 0.1
    assert float(gate[1:].min()) > 0.8


def test_the_penalty_is_the_l1_norm() -> None:
    gates = [torch.tensor([1.0, -2.0]), torch.tensor([[0.5]])]
    assert float(_gates.penalty(gates)) == 3.5


def test_gates_keep_the_precision_of_what_they_multiply() -> None:
    net = _Net().to(torch.bfloat16)
    with _gates.gated(net, {"down": 4}) as gates:
        assert net(torch.randn(2, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16
        assert gates["down"].dtype == torch.float32
        assert gates["down"].shape == (4,)


def test_gates_that_do_not_share_the_columns_evenly_are_refused() -> None:
    with (
        pytest.raises(ValueError, match="down: 3 gates do not share its 8 inputs evenly"),
        _gates.gated(_Net(), {"down": 3}),
    ):
        pass
