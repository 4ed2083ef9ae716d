"""Static inputs: their steps against what linears really read, in every family; clipping against a full search."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from compress import registry, tree
from compress.artifact import Artifact
from compress.context import Context, QuietReport
from compress.contracts import Pass
from compress.errors import BadData, BadSettings
from compress.facts import Format, GridFact
from compress.reading import reading, rounded, static
from passes import _masks
from passes._layerwise.inputs import Inputs, Sums
from passes._pruned import facts_of
from passes._quant import Quantizer
from passes._quant.inputs import step
from passes.smoothquant import SmoothQuant
from tests.conftest import CAUSAL, ENCODERS, loud, outputs, state

Tiny = Callable[..., Artifact]
USES = ("rtn", "gptq")
FACT = GridFact(bits=8, group_size=None, activation="static")


def make(use: str, **given: Any) -> Quantizer:
    found: Any = registry.load("passes", use, Pass)
    made: Quantizer = found(found.Settings(**{"bits": 8, "activation": "static"} | given))
    return made


def counted(x: Tensor) -> Inputs:
    """Return what the walk gathers of inputs `[tokens, in]`."""
    sums = Sums(torch.nn.Linear(x.shape[1], 2), torch.arange(1), gram=False, cross=False, sizes=True)
    for part in torch.split(x, 7):
        sums.add(part)
    sums.hold_out(x[:1])
    return sums.inputs()


def lost(x: Tensor, scale: Tensor, format_: Format) -> float:
    return float((x - rounded(x, scale, format_)).double().square().sum())


# -- the step of one tensor --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("format_", "most"), [("int", 127), ("fp8", 448)])
def test_the_widest_range_clips_nothing_and_is_held_by_every_precision(format_: Format, most: int) -> None:
    for seed in range(20):
        x = torch.randn(40, 16, generator=torch.Generator().manual_seed(seed)) * 3**seed / 1e4
        found = step(counted(x), format_, "max")
        assert found.dtype == torch.float32
        assert found.dim() == 0
        assert x.abs().max() <= found * most <= x.abs().max() * 1.01 + 2.0**-20 * most
        assert found.bfloat16().float() == found


@pytest.mark.parametrize("format_", ["int", "fp8"])
@pytest.mark.parametrize("kind", ["even", "normal", "outliers"])
def test_clipping_loses_no_more_than_any_other_range(kind: str, format_: Format) -> None:
    x = torch.randn(3000, 32, generator=torch.Generator().manual_seed(0))
    if kind == "even":
        x = x.sign() * torch.rand(3000, 32, generator=torch.Generator().manual_seed(1))
    if kind == "outliers":
        x[5, 3], x[9, 3] = 60, -50
    found = step(counted(x), format_, "mse")
    widest = step(counted(x), format_, "max")
    others = (widest * 2 ** (-torch.arange(80) / 16)).tolist()
    best = min(lost(x, torch.tensor(other), format_) for other in others)
    assert lost(x, found, format_) <= 1.05 * best
    if format_ == "int":
        assert (found >= 0.99 * widest) == (kind == "even")
        assert (found < 0.8 * widest) == (kind == "outliers")


@pytest.mark.parametrize("range_", ["max", "mse"])
def test_nothing_but_zeros_is_read_in_steps_of_one(range_: Any) -> None:
    assert step(counted(torch.zeros(9, 4)), "int", range_) == 1


# -- the passes --------------------------------------------------------------------------------------------------------


def read(artifact: Artifact, context: Context) -> dict[str, Tensor]:
    """Return by linear the largest |x| that it reads on the calibration data, padding left out."""
    examples: Any = context.data["calibration"].examples(artifact.tokenizer)
    found: dict[str, list[Tensor]] = {}
    real: list[Tensor] = []

    def see(name: str) -> Any:
        return lambda _, args: found.setdefault(name, []).append(args[0].flatten(0, -2)[real[0]].abs().max())

    hooks = [m.register_forward_pre_hook(see(n)) for n, m in tree.block_linears(artifact.model).items()]
    for row in range(len(examples)):
        batch = examples.batch([row])
        real[:] = [batch["attention_mask"].bool().flatten()]
        with torch.no_grad():
            artifact.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    for hook in hooks:
        hook.remove()
    return {n: torch.stack(values).max() for n, values in found.items()}


@pytest.mark.parametrize(
    ("kind", "use"), [*((k, "rtn") for k in (*CAUSAL, *ENCODERS)), *((k, "gptq") for k in ("llama", "opt", "bert"))]
)
def test_every_family_gets_steps_that_hold_what_is_read(
    kind: str, use: str, tiny: Tiny, context: Any, tmp_path: Path
) -> None:
    artifact, plugin = loud(tiny(kind)), make(use, input_range="max")
    planned = plugin.plan(facts_of(artifact))
    assert set(planned.grids.values()) == {FACT}
    assert plugin.data_uses() == {"calibration"}
    given = context(artifact)
    after = plugin.run(artifact, given)
    plugin.ensures(loud(tiny(kind)), after)
    assert {n: after.grids[n].fact for n in after.grids} == planned.grids
    (tmp_path / "after").mkdir()
    after.save(tmp_path / "after")
    again = Artifact.load(tmp_path / "after")
    widest = read(again, given)
    for name, grid in again.grids.items():
        assert grid.input_scale is not None
        assert grid.input_scale == after.grids[name].input_scale
        assert float(grid.input_scale * 127 / widest[name]) == pytest.approx(1, abs=0.35)  # some windows are held out
    with reading(again.model, static(again.grids)):
        found = outputs(again)
    off = (found - outputs(again)).square().sum() / outputs(again).square().sum()
    assert 0 < off < 0.05
    assert "steps of their own" in given.report.notes[0]


@pytest.mark.parametrize("use", USES)
def test_linears_that_read_the_same_share_a_step_and_some_stay_floats(use: str, tiny: Tiny, context: Any) -> None:
    artifact = tiny("llama")
    after = make(use, layers={"down_proj": "float"}).run(artifact, context(artifact))
    steps = {n: float(after.grids[n].tensors["input_scale"]) for n in after.grids}
    assert not any("down_proj" in n for n in steps)
    for joined in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
        assert len({s for n, s in steps.items() if ".0." in n and n.endswith(joined)}) == 1
    assert len(set(steps.values())) > 2


@pytest.mark.parametrize("use", USES)
def test_a_run_resumes_to_the_same_steps(use: str, tiny: Tiny, context: Any) -> None:
    found = []
    for _ in range(2):  # the second run finds all blocks finished
        artifact = tiny("llama")
        found.append(make(use).run(artifact, context(artifact)))
    first, second = found
    assert all(_masks.same_bits(t, second.tensor(n)) for n, t in state(first).items())
    for name in first.grids:
        parts = second.grids[name].tensors
        assert all(_masks.same_bits(t, parts[n]) for n, t in first.grids[name].tensors.items())


def test_weights_are_what_they_are_without_steps(tiny: Tiny, context: Any) -> None:
    found = []
    for activation in ("none", "static"):
        artifact = tiny("qwen3")
        found.append(make("rtn", activation=activation).run(artifact, context(artifact, activation)))
    for name, tensor in state(found[0]).items():
        assert _masks.same_bits(tensor, found[1].tensor(name))


def test_floats_of_8_bits_read_such_floats(tiny: Tiny, context: Any) -> None:
    artifact, plugin = loud(tiny("llama")), make("rtn", format="fp8")
    planned = plugin.plan(facts_of(artifact))
    after = plugin.run(artifact, context(artifact))
    assert {n: after.grids[n].fact for n in after.grids} == planned.grids
    with reading(after.model, static(after.grids)):
        found = outputs(after)
    assert 0 < (found - outputs(after)).square().sum() / outputs(after).square().sum() < 0.05


def test_smoothquant_before_makes_them_lose_less(tiny: Tiny, context: Any) -> None:
    off = []
    for smooth in (False, True):
        artifact = loud(tiny("llama"), inside="layernorm")
        was = outputs(artifact)
        if smooth:
            artifact = SmoothQuant(SmoothQuant.Settings()).run(artifact, context(artifact, "smooth"))
        after = make("rtn", input_range="max").run(artifact, context(artifact, f"steps-{smooth}"))
        with reading(after.model, static(after.grids)):
            off.append(float((outputs(after) - was).square().sum()))
    assert off[1] < 0.8 * off[0]


# -- what cannot be ----------------------------------------------------------------------------------------------------


def test_without_data_it_is_told_in_a_line(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"calibration: .* needs data, and got none; \[data.calibration\] gives some"):
        make("rtn").run(tiny("llama"), Context(folder=tmp_path, report=QuietReport()))


@pytest.mark.parametrize("use", ["awq", "l4q"])
def test_passes_that_find_no_steps_do_not_take_them(use: str) -> None:
    with pytest.raises(ValidationError, match="'none' or 'dynamic'"):
        make(use)


@pytest.mark.parametrize("use", USES)
def test_they_are_not_judged_linear_by_linear(use: str, tiny: Tiny, context: Any) -> None:
    artifact = tiny("llama")
    with pytest.raises(BadSettings, match=r"judged one by one.* got 'static'; 'dynamic' would do"):
        make(use).candidates(artifact, context(artifact))


def test_estimates_count_the_walk(tiny: Tiny) -> None:
    facts = facts_of(tiny("llama"))
    plain, walked = make("rtn", activation="none").estimate(facts), make("rtn").estimate(facts)
    assert walked.seconds > plain.seconds
    assert walked.disk_mib > plain.disk_mib
