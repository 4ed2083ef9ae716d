"""The low-bit benchmark's own parts: rivals are what they are called, files are read right, rates are chosen fairly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import _score
from benchmarks._ledger import Row
from benchmarks._passes import context_of, through
from benchmarks.low_bit import chain, oneshot, packed, report, rivals, trained
from benchmarks.low_bit.ours import METHODS, ready
from benchmarks.peers._case import Grid as Asked
from compress import registry, tree
from compress.artifact import Artifact
from compress.context import Context
from compress.contracts import Exporter, Pass
from passes import _quant
from passes._train import TrainSettings

ASKED = Asked(3, 4, True)


def test_forms_are_read() -> None:
    assert Asked.of("W4 g128") == (4, 128, True)
    assert Asked.of("W2 g32 asymmetric") == (2, 32, False)


def test_every_method_of_the_tables_is_a_pass_with_such_settings() -> None:
    chains = [list(chain.passes(chain.Cell("", name, "2:4", 256, 1e-3))) for name in chain.CHAINS]
    for use, settings in (step for steps in (*METHODS.values(), *chains) for step in steps):
        if ready(use):
            found = registry.load("passes", use, Pass).Settings
            assert found(**settings).model_fields_set == settings.keys(), use


def test_all_that_a_chain_trains_comes_to_the_steps_of_its_control() -> None:
    for name in chain.CHAINS:
        steps = [s["steps"] for use, s in chain.passes(chain.Cell("", name, "2:4", 256, 1e-3)) if use in chain.TRAINS]
        assert sum(steps) == 256 or not steps, name


def test_every_training_of_the_tables_is_of_a_rival_or_a_pass_with_such_settings() -> None:
    for use in {use for uses in trained.METHODS.values() for use in uses}:
        name, *ways = use.split()
        assert (name in rivals.NAMES) != (name in trained.PASSES)
        for way in ways:
            found = registry.load("passes", name, Pass).Settings
            assert found(**trained.WAYS[way]).model_fields_set == trained.WAYS[way].keys()


def test_a_model_does_not_diverge_from_itself_and_does_from_another(tiny: Callable[..., Artifact]) -> None:
    one, other = tiny("llama").model, tiny("llama").model
    windows = torch.arange(32).view(2, 16) % 20
    assert _score.window_divergences(one, other, windows) == pytest.approx([0, 0], abs=1e-6)
    with torch.no_grad():
        other.get_parameter("lm_head.weight").mul_(1.5)
        now, before = (m(input_ids=windows[:1]).logits.softmax(-1) for m in (one, other))
    expected = float((before * (before / now).log()).sum(-1).mean())
    assert _score.window_divergences(one, other, windows)[0] == pytest.approx(expected, rel=1e-3)


def test_the_values_of_a_group_tell_a_grid_from_floats() -> None:
    weight = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    fact = rivals.fact_of(ASKED)
    on_grid = _quant.grid(weight, _quant.span(weight, fact), fact).dequantized()
    assert oneshot._values(weight, 16) == 16
    assert oneshot._values(on_grid, 4) <= 4
    assert oneshot._values(torch.tensor([[1.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.0, 1.0]]), 4) == 3


@pytest.mark.parametrize("name", rivals.NAMES)
def test_a_rival_starts_where_it_should(name: str) -> None:
    weight = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
    fact = rivals.fact_of(ASKED)
    rounded = _quant.grid(weight, _quant.span(weight, fact), fact).dequantized()
    part = rivals.expression(name, ASKED, 2)(weight, 0)
    torch.testing.assert_close(part(weight), rounded if name == "qat-lora" else weight)


def test_rounding_passes_gradients_straight_through() -> None:
    weight = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
    rounded, plain = (rivals.expression(n, ASKED, 2)(weight, 0) for n in ("qat-lora", "lora"))
    for part in (rounded, plain):
        (part(weight) * torch.arange(60.0).view(5, 12)).sum().backward()
    assert rounded.b.grad is not None
    torch.testing.assert_close(rounded.b.grad, plain.b.grad)


def test_qa_lora_stays_on_a_grid_and_the_model_has_plain_linears_again(
    tiny: Callable[..., Artifact], tmp_path: Path
) -> None:
    artifact = tiny("llama")
    context = context_of(tmp_path, training=torch.arange(64).view(4, 16) % 20)
    asked = Asked(2, 4, False)
    artifact = through("rtn", asked._asdict(), artifact, context)
    settings = TrainSettings(steps=3, lr=0.05, batch=2)
    after = rivals.train(artifact, rivals.expression("qa-lora", asked, 2), settings, context)
    assert not after.grids
    for name, linear in tree.block_linears(after.model).items():
        assert type(linear) is torch.nn.Linear
        assert oneshot._values(linear.weight.detach(), 4) <= 4
        assert not torch.equal(linear.weight, artifact.grids[name].dequantized())


def test_zeros_are_counted_in_the_packed_files(tiny: Callable[..., Artifact], tmp_path: Path) -> None:
    artifact = through("magnitude", {"pattern": "2:4"}, tiny("llama"), context_of(tmp_path))
    asked = {"bits": 2, "group_size": 16, "symmetric": False}
    artifact = through("rtn", asked, artifact, context_of(tmp_path))
    expected = {"linears": len(artifact.grids), "zeros": pytest.approx(_share(artifact), abs=1e-5), "two_of_four": True}
    assert chain.files_of(artifact) == {"packed": {"onnx": expected, "safetensors": expected}}


@pytest.mark.parametrize("bits", [3, 4])
def test_a_pattern_that_is_lost_is_seen(bits: int, tiny: Callable[..., Artifact], tmp_path: Path) -> None:
    artifact = through("rtn", {"bits": bits, "group_size": 16}, tiny("llama"), context_of(tmp_path))
    found = packed.of_compressed_tensors(_written(artifact, tmp_path))
    assert not found["two_of_four"]
    assert found["zeros"] == pytest.approx(_share(artifact), abs=1e-5)


def test_the_rate_is_chosen_on_tuning_windows() -> None:
    rows: dict[str, Row] = {}
    for lr, tuning, loss in ((1e-3, 2.0, 9.0), (3e-3, 3.0, 1.0)):
        cell = trained.Cell("l4q", "W3 g64", 8, lr)
        rows[cell.key] = {"key": cell.key, "method": "l4q", "grid": "W3 g64", "steps": 8, "lr": lr, "seed": 0}
        rows[cell.key] |= {"tuning": tuning, "losses": [loss] * 4, "kl": [loss] * 4}
    found = trained.best(rows, trained.Cell("l4q", "W3 g64", 8))
    assert [r["lr"] for r in found] == [1e-3]


def test_a_page_puts_the_nearest_to_dense_first_and_names_what_failed() -> None:
    rows: dict[str, Row] = {"dense": {"key": "dense", "losses": [1.0, 1.1]}}
    for tool, kl in (("peer", 0.2), ("compress", 0.1)):
        cell = oneshot.Cell(tool, "gptq", "W3 g64")
        figures = {"losses": [1.2, 1.3], "kl": [kl, kl], "values": 8, "cpu_seconds": 1.0, "added_mib": 2.0}
        rows[cell.key] = {"key": cell.key, "tool": tool, "method": "gptq", "grid": "W3 g64", **figures}
    cell = oneshot.Cell("peer", "awq", "W3 g64")
    rows[cell.key] = {"key": cell.key, "tool": "peer", "method": "awq", "grid": "W3 g64", "failed": "no memory"}
    page = report.render({}, rows)
    assert page.index("| compress | gptq") < page.index("| peer | gptq")
    assert "-0.10000" in page
    assert "peer awq failed: no memory" in page


def _share(artifact: Artifact) -> float:
    zeros = [artifact.grids[n].dequantized() == 0 for n in artifact.grids]
    return sum(int(z.sum()) for z in zeros) / sum(z.numel() for z in zeros)


def _written(artifact: Artifact, scratch: Path) -> Path:
    plugin = registry.load("exporters", "safetensors", Exporter)
    (scratch / "out").mkdir()
    plugin(plugin.Settings()).export(artifact, scratch / "out", Context(folder=scratch), None)
    return scratch / "out"
