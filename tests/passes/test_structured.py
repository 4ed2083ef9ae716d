"""Structured pruning: what is worth how much, what goes, what stays bit for bit, in every family and on disk."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compress import blocks, registry, tree
from compress.artifact import Artifact
from compress.context import Context, QuietReport
from compress.contracts import Exporter, Target
from compress.data import DataSettings, Role, Source
from compress.engines import Engines
from compress.errors import BadModel, BadSettings, BrokenPromise
from compress.facts import BlockConfig, Facts, MaskFact, Planned
from passes import _gates, _masks, _train
from passes._narrowing import cutting
from passes.structured import Structured, layers, learned, scores
from passes.structured.cutting import _by_output
from tests.conftest import CAUSAL, ENCODERS, standing

Tiny = Callable[..., Artifact]
WORDS = "the quick brown fox jumps over the lazy dog a model is pruned and retrained and no bit of the rest is lost"
CRITERIA = ("magnitude", "activation", "gates")


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, sentences with classes, and sentences with numbers."""
    folder = tmp_path_factory.mktemp("texts")
    words = WORDS.split()
    (folder / "text.txt").write_text(" ".join(words[(i * i + 3 * i // 5) % len(words)] for i in range(900)))
    rows = [(" ".join(words[i % 7 : i % 7 + 3 + i % 4]), i % 2, i / 10) for i in range(16)]
    (folder / "classes.csv").write_text("text,label\n" + "".join(f'"{t}",{c}\n' for t, c, _ in rows))
    (folder / "numbers.csv").write_text("text,label\n" + "".join(f'"{t}",{v}\n' for t, _, v in rows))
    return folder


class Bench:
    """A model, its data, what was planned of it, and what structured pruning makes of it."""

    def __init__(self, artifact: Artifact, texts: Path, folder: Path, pattern: str = "unstructured") -> None:
        names = {"classification": "classes.csv", "embedding": "classes.csv", "regression": "numbers.csv"}
        table = DataSettings(source=str(texts / names.get(artifact.task, "text.txt")), windows=8, length=12)
        roles: tuple[Role, Role] = ("training", "calibration")
        self.before, self.report, self.folder = artifact, QuietReport(), folder
        masks = {n: MaskFact(pattern, 0.5) for n in artifact.masks}
        self.facts: Facts = tree.facts(artifact.model, artifact.task).after(masks=masks)
        data: dict[str, Source] = {r: Source(table, r, artifact.task) for r in roles}
        self.context = Context(folder=folder, report=self.report, data=data, facts=self.facts)

    def run(self, **given: Any) -> Artifact:
        """Run on a copy, and hold the pass to its plan and its promises, also after a visit to the disk."""
        plugin = structured(**given)
        facts = plugin.plan(self.facts)
        after = plugin.run(self.copy(), self.context)
        plugin.ensures(self.before, after)
        measured = tree.facts(after.model, after.task)
        assert measured.after(masks=facts.masks, dropped=facts.dropped) == facts
        assert after.masks.keys() == facts.masks.keys()
        saved = self.folder / "after"
        saved.mkdir()
        after.save(saved)
        again = Artifact.load(saved)
        plugin.ensures(self.before, again)
        assert tree.layout(again.model) == facts.layout
        assert all(torch.equal(again.masks[n], m) for n, m in after.masks.items())
        assert torch.allclose(logits(again), logits(after), atol=1e-6)
        return after

    def copy(self) -> Artifact:
        """Return the artifact with a model of its own."""
        return self.before.after(model=copy.deepcopy(self.before.model))


def structured(**given: Any) -> Structured:
    small = {"steps": 3, "batch": 4, "multiple": 1, "neurons": 0.0}
    return Structured(Structured.Settings(**(small | given)))


def logits(artifact: Artifact) -> Tensor:
    with torch.no_grad():
        output = artifact.model(torch.arange(2, 26).view(2, 12))
    found: Tensor = output.logits if hasattr(output, "logits") else output.last_hidden_state
    return found


@pytest.fixture
def bench(tiny: Tiny, texts: Path, tmp_path: Path) -> Callable[..., Bench]:
    def make(kind: str = "llama", **rest: Any) -> Bench:
        return Bench(tiny(kind, **rest), texts, tmp_path)

    return make


@pytest.fixture
def masked(tiny: Tiny, texts: Path, tmp_path: Path) -> Callable[..., Bench]:
    def make(kind: str, pattern: str) -> Bench:
        artifact, masks = tiny(kind), {}
        for name, linear in tree.block_linears(artifact.model).items():
            score = linear.weight.detach().abs()
            given = _masks.Pattern.parse(pattern)
            masks[name] = (
                _masks.keep_n_of_m(score, given.keep, given.group) if given.group else _masks.keep_top(score, 0.5)
            )
            _masks.apply_(linear.weight, masks[name])
        return Bench(artifact.after(masks=masks), texts, tmp_path, pattern)

    return make


# -- every family -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODERS])
def test_every_family_gets_smaller_and_survives_the_disk(
    bench: Callable[..., Bench], kind: str, criterion: str
) -> None:
    made = bench(kind)
    was = tree.layout(made.before.model)[0]
    after = made.run(heads=0.5, neurons=0.25, criterion=criterion)
    now = BlockConfig(heads=was.heads // 2, kv_heads=was.kv_heads // 2, head_dim=was.head_dim, ffn=was.ffn * 3 // 4)
    assert tree.layout(after.model) == (now, now)
    assert f"{after.model.num_parameters():,} of" in made.report.notes[-1]


@pytest.mark.parametrize("layer_criterion", ["similarity", "das"])
@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODERS])
def test_every_family_loses_a_block(bench: Callable[..., Bench], kind: str, layer_criterion: str) -> None:
    made = bench(kind)
    after = made.run(layers=1, layer_criterion=layer_criterion)
    (gone,) = made.report.measured["layers"][0]["removed"]
    left = list(tree.blocks(made.before.model).values())[1 - gone]
    (block,) = tree.blocks(after.model).values()
    assert all(torch.equal(t, left.state_dict()[n]) for n, t in block.state_dict().items())


def test_regression_and_embedding(bench: Callable[..., Bench], tiny: Tiny, texts: Path, tmp_path: Path) -> None:
    bench("bert", task="regression").run(heads=0.5, neurons=0.5, criterion="gates")
    (tmp_path / "other").mkdir()
    Bench(tiny("bert", task="embedding"), texts, tmp_path / "other").run(layers=1, heads=0.25, criterion="activation")


# -- what a head and a neuron are worth ---------------------------------------------------------------------------


def test_by_output_is_the_change_that_zeroing_makes() -> None:
    reader, x = torch.randn(6, 12), torch.randn(40, 12)
    for units in (1, 3, 12):
        score = scores.by_output(reader, scores.gram_of(x, units) / len(x))
        for unit in range(units):
            without = x.clone().view(40, units, -1)
            without[:, unit] = 0
            change = (x - without.view(40, 12)) @ reader.t()
            torch.testing.assert_close(score[unit], change.square().sum(1).mean())


def test_by_weights_is_the_product_of_norms() -> None:
    reader, up, gate = torch.randn(6, 4), torch.randn(4, 6), torch.randn(4, 6)
    score = scores.by_weights(reader, [up, gate], 4)
    for j in range(4):
        torch.testing.assert_close(score[j], reader[:, j].norm() * up[j].norm() * gate[j].norm())
    heads = scores.by_weights(reader, [up], 2)
    torch.testing.assert_close(heads[1], reader[:, 2:].norm() * up[2:].norm())


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_activation_measures_in_the_model_behind_what_is_cut_already(bench: Callable[..., Bench], kind: str) -> None:
    made = bench(kind)
    artifact = made.copy()
    model, table = artifact.model, tree.family(artifact.model)
    units = []
    for name, shape in zip(tree.blocks(model), tree.layout(model), strict=True):
        units.append({f"{name}.{table.qkvo[-1]}": shape.kv_heads, f"{name}.{table.down}": shape.ffn})
    settings = structured(batch=3).settings
    for index, found in enumerate(_by_output(artifact, units, settings, made.context)):
        for name, count in units[index].items():
            reader: Any = model.get_submodule(name)
            out, read = _seen(artifact, made, reader)
            for unit in (0, count - 1):
                kept = reader.weight.detach().clone().view(len(reader.weight), count, -1)
                kept[:, unit] = 0
                bias = 0 if reader.bias is None else reader.bias
                change = out - (read @ kept.view_as(reader.weight).t() + bias)
                torch.testing.assert_close(found[name][unit], change.square().sum(1).mean(), rtol=1e-4, atol=1e-8)
        blocks.slice_(model, index, kv_groups=torch.tensor([1]), neurons=torch.arange(3, 40))


def _seen(artifact: Artifact, made: Bench, reader: torch.nn.Module) -> tuple[Tensor, Tensor]:
    """Return what a linear gives and reads, [tokens, ...], for all windows but the held-out one."""
    examples = made.context.data["calibration"].examples(artifact.tokenizer)
    held_out = _train.draw(0, 8, 8, 0)[7]
    batch = examples.batch([i for i in range(8) if i != held_out])
    seen: list[tuple[Tensor, Tensor]] = []
    hook = reader.register_forward_hook(lambda module, args, output: seen.append((output, args[0])))
    with torch.no_grad():
        artifact.model(**_train.inputs_of(artifact.model, batch, torch.device("cpu")))
    hook.remove()
    real = batch["attention_mask"].bool().reshape(-1)
    return tuple(t.reshape(-1, t.shape[-1])[real] for t in seen[0])  # type: ignore[return-value]


@pytest.mark.parametrize("criterion", ["magnitude", "activation"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "roberta"])
def test_what_adds_nothing_goes_first(bench: Callable[..., Bench], kind: str, criterion: str) -> None:
    made = bench(kind)
    model = made.before.model
    table, shape = tree.family(model), tree.layout(model)[0]
    idle, width = 1, shape.heads // shape.kv_heads * shape.head_dim
    for name in tree.blocks(model):
        output, down = (model.get_parameter(f"{name}.{n}.weight").data for n in (table.qkvo[-1], table.down))
        output[:, idle * width : (idle + 1) * width] = 0
        down[:, 3:9] = 0
    after = made.run(heads=(shape.kv_heads - 1,) * 2, neurons=(shape.ffn - 6,) * 2, criterion=criterion)
    torch.testing.assert_close(logits(after), logits(made.before), atol=1e-5, rtol=1e-5)


def test_gates_are_shared_by_the_query_heads_of_a_key_head(bench: Callable[..., Bench]) -> None:
    made = bench("llama")
    name = "model.layers.0.self_attn.o_proj"
    before = {n: p.clone() for n, p in made.before.model.state_dict().items()}
    found = learned.gates(made.before, {name: 2}, structured(criterion="gates").settings, made.context)
    assert found[name].shape == (2,)
    assert (found[name] != 1).all()
    after = made.before.model.state_dict()
    assert before.keys() == after.keys(), "adapters are gone"
    assert all(torch.equal(t, before[n]) for n, t in after.items())


def test_gates_leave_the_classifier_as_it_was(bench: Callable[..., Bench]) -> None:
    made = bench("bert")
    before = {n: p.clone() for n, p in made.before.model.state_dict().items()}
    learned.gates(made.before, {"bert.encoder.layer.0.output.dense": 64}, structured().settings, made.context)
    assert all(torch.equal(t, before[n]) for n, t in made.before.model.state_dict().items())
    assert all(p.requires_grad for p in made.before.model.parameters())


# -- how many stay ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "multiple", "kept"),
    [(0.25, 1, 48), (0.25, 20, 40), (0.2, 20, 60), (0.9, 20, 20), (0.99, 64, 64), (0.3, 128, 64), (0.1, 1, 58)],
)
def test_widths_are_the_nearest_multiple(tiny: Tiny, asked: float, multiple: int, kept: int) -> None:
    facts = tree.facts(tiny("llama").model, "causal-lm")
    planned = structured(neurons=asked, multiple=multiple, heads=0.5).plan(facts)
    assert [b.ffn for b in planned.layout] == [kept, kept]


def test_rounding_is_told(bench: Callable[..., Bench]) -> None:
    made = bench("llama")
    made.run(neurons=0.3, multiple=16)
    assert made.report.notes[0] == "neurons = 0.3 of 64 is rounded to 0.25, so that 48 stay"
    assert len(made.report.notes) == 2


def test_lists_shape_every_block_by_itself(bench: Callable[..., Bench]) -> None:
    made = bench("opt")
    after = made.run(heads=(1, 3), neurons=(64, 17))
    assert [(b.heads, b.ffn) for b in tree.layout(after.model)] == [(1, 64), (3, 17)]


def test_layers_and_widths_together(bench: Callable[..., Bench]) -> None:
    after = bench("qwen3").run(layers=1, heads=(1,), neurons=0.5, criterion="activation")
    assert tree.layout(after.model) == (BlockConfig(heads=2, kv_heads=1, head_dim=16, ffn=32),)


def test_a_quarter_of_the_heads_and_two_fifths_of_the_neurons_are_a_third_of_the_products(tiny: Tiny) -> None:
    facts = tree.facts(tiny("gpt2").model, "causal-lm")  # attention is a third of them, for the FFN is four wide
    planned = structured(heads=0.25, neurons=0.4).plan(facts)
    before, after = (sum(out * inputs for out, inputs in f.shapes.values()) for f in (facts, planned))
    assert 1 - after / before == pytest.approx(0.35, abs=0.005)


def test_only_chosen_blocks_get_narrower(bench: Callable[..., Bench]) -> None:
    after = bench("llama").run(heads=0.5, neurons=0.5, exclude=("layers.0",))
    was, now = tree.layout(after.model)
    assert (was.heads, was.ffn, now.heads, now.ffn) == (4, 64, 2, 32)


@pytest.mark.parametrize(
    ("given", "key", "said"),
    [
        ({}, "heads", "nothing would be removed"),
        ({"neurons": 0.2, "multiple": 128}, "neurons", "is rounded to 0, so that 64 stay"),
        ({"heads": 0.9}, "heads", "would keep 0"),
        ({"heads": (1, 3)}, "heads", "1 to 2 can stay"),
        ({"heads": (1,)}, "heads", "each of the 2 blocks, got 1"),
        ({"neurons": (64, 65)}, "neurons", "block 1 has 64 neurons and would keep 65"),
        ({"neurons": (64, 0)}, "neurons", "would keep 0"),
        ({"neurons": (32, 32), "layers": 1}, "neurons", "each of the 1 blocks, got 2"),
        ({"neurons": (32, 32), "include": ("layers.0",)}, "neurons", "block 1 is not worked on and has 64"),
        ({"neurons": 0.5, "include": ("self_attn",)}, "neurons", "no block that is worked on"),
        ({"layers": 2}, "layers", "2 blocks and one must stay"),
        ({"layers": 1, "exclude": ("layers.0",)}, "exclude", "blocks move up"),
    ],
)
def test_impossible_settings_are_found_before_any_work(tiny: Tiny, given: dict[str, Any], key: str, said: str) -> None:
    with pytest.raises(BadSettings, match=said) as caught:
        structured(**given).plan(tree.facts(tiny("llama").model, "causal-lm"))
    assert caught.value.key == key


@pytest.mark.parametrize("given", [{"heads": 0.5, "criterion": "gates"}, {"layers": 1, "layer_criterion": "das"}])
def test_an_embedding_model_has_nothing_to_learn_from(tiny: Tiny, given: dict[str, Any]) -> None:
    with pytest.raises(BadSettings, match="no loss of its own"):
        structured(**given).plan(tree.facts(tiny("bert", task="embedding").model, "embedding"))


def test_unlike_blocks_are_not_removed(tiny: Tiny) -> None:
    facts = tree.facts(tiny("llama").model, "causal-lm")
    one = facts.after(masks={"model.layers.0.mlp.up_proj": MaskFact("2:4", 0.5)})
    narrow = structured(neurons=(64, 32)).plan(facts)
    planned = facts.after(plan={"model.layers.0.mlp.up_proj": Planned(pattern="2:4")})
    for unlike in (one, narrow, planned):
        with pytest.raises(BadSettings, match="unlike shapes, masks, branches or plans"):
            structured(layers=1).plan(unlike)


def test_a_branch_is_cut_with_its_linear(bench: Callable[..., Bench]) -> None:
    made = bench("llama")
    random = torch.Generator().manual_seed(0)
    names = [f"model.layers.{i}.{n}" for i in (0, 1) for n in ("self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")]
    given = {}
    for name in names:
        out, inputs = made.facts.shapes[name]
        a, b = (torch.randn(*shape, generator=random) for shape in ((2, inputs), (out, 2)))
        given[name] = blocks.Branch(a, b)
    blocks.branch_(made.before.model, given)
    made.facts = tree.facts(made.before.model, "causal-lm")
    made.context = dataclasses.replace(made.context, facts=made.facts)
    after = made.run(layers=1, heads=0.5, neurons=0.25, criterion="gates")
    found = after.model.get_submodule("model.layers.0.mlp.down_proj")
    assert isinstance(found, blocks.Branched)
    assert found.a.shape == (2, 48)


def test_only_what_the_criteria_read_is_declared() -> None:
    def read(**given: Any) -> set[str]:
        return set(structured(**given).data_uses())

    assert read(neurons=0.5) == set()
    assert read(neurons=0.5, criterion="activation") == {"calibration"}
    assert read(neurons=0.5, criterion="gates") == {"training"}
    assert read(layers=1, criterion="gates") == {"calibration"}
    assert read(layers=1, layer_criterion="das", heads=0.5, criterion="activation") == {"calibration", "training"}


def test_estimate_counts_what_is_trained(tiny: Tiny) -> None:
    facts = tree.facts(tiny("llama").model, "causal-lm")
    plain, gates = (structured(neurons=0.5, criterion=c).estimate(facts) for c in ("magnitude", "gates"))
    assert plain.trainable == 0 < gates.trainable
    assert plain.disk_mib == 4 * (facts.parameters - 2 * 3 * 32 * 32) / 2**20
    assert gates.peak_mib > plain.peak_mib


# -- masks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_groups_of_a_pattern_stay_whole(masked: Callable[..., Bench], kind: str) -> None:
    made = masked(kind, "2:4")
    table = tree.family(made.before.model)
    after = made.run(heads=0.5, neurons=0.3)
    for name, mask in after.masks.items():
        assert (mask.view(-1, 4).sum(1) == 2).all(), name
    name = next(iter(tree.blocks(made.before.model)))
    down = made.before.model.get_parameter(f"{name}.{table.down}.weight").detach()
    makers = [made.before.model.get_parameter(f"{name}.{n}.weight").detach() for n in table.up]
    score = scores.by_weights(down, makers, down.shape[1]).view(-1, 4).sum(1)
    count = tree.layout(after.model)[0].ffn // 4
    wanted = score.topk(count).indices.sort().values
    kept = down.view(len(down), -1, 4)[:, wanted].reshape(len(down), -1)
    assert torch.equal(after.model.get_parameter(f"{name}.{table.down}.weight"), kept)


def test_unstructured_masks_are_cut_along_and_follow_their_blocks(masked: Callable[..., Bench]) -> None:
    made = masked("opt", "unstructured")
    after = made.run(layers=1, heads=0.25, neurons=0.3, criterion="activation")
    linears = tree.block_linears(after.model)
    assert after.masks.keys() == linears.keys()
    assert all((linears[n].weight[~m] == 0).all() for n, m in after.masks.items())


def test_a_head_that_cuts_groups_is_refused(masked: Callable[..., Bench]) -> None:
    facts = masked("opt", "2:4").facts
    wide = facts.after(masks={n: MaskFact("8:16", 0.5) for n in facts.masks})
    structured(heads=0.5).plan(facts)
    with pytest.raises(BadSettings, match="8:16 mask, whose groups the 8 columns of a head cut"):
        structured(heads=0.5).plan(wide)
    with pytest.raises(BadSettings, match="its mask has groups of 16"):
        structured(neurons=(32, 40)).plan(wide)
    assert structured(neurons=0.4, multiple=8).plan(wide).layout[0].ffn == 32


# -- blocks -------------------------------------------------------------------------------------------------------


IDLE = 1


@pytest.fixture(scope="module")
def taught(tiny: Tiny, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A model of four blocks that knows its text, of which one adds nothing."""
    artifact = tiny("llama")
    config = copy.deepcopy(artifact.model.config)
    config.num_hidden_layers = 4
    torch.manual_seed(0)
    model = type(artifact.model)(config)
    model.train(False)
    made = Bench(artifact.after(model=model), texts, tmp_path_factory.mktemp("taught"))
    idle = [p for n, p in model.named_parameters() if f"layers.{IDLE}." in n]
    for parameter in idle:
        parameter.data.mul_(0 if parameter.ndim > 1 else 1)
    settings = _train.TrainSettings(steps=150, lr=1e-2, batch=8)
    loss_of = _train.loss_on(made.before, settings, made.context)
    trained = {n: p for n, p in model.named_parameters() if not any(p is i for i in idle)}
    _train.train_([_train.Group(trained, settings.lr)], loss_of, settings, made.context)
    return made.before


@pytest.mark.parametrize("layer_criterion", ["similarity", "das"])
def test_the_block_that_does_nothing_goes(taught: Artifact, texts: Path, tmp_path: Path, layer_criterion: str) -> None:
    made = Bench(taught, texts, tmp_path)
    after = made.run(layers=1, layer_criterion=layer_criterion, steps=30)
    assert made.report.measured["layers"][0]["removed"] == [IDLE]
    torch.testing.assert_close(logits(after), logits(taught))


def test_similarity_is_one_minus_the_cosine(bench: Callable[..., Bench]) -> None:
    made = bench("bert")
    found = layers.changes(made.before, structured(layers=1, batch=3).settings, made.context)
    examples = made.context.data["calibration"].examples(made.before.tokenizer)
    batch = examples.batch(range(len(examples)))
    with torch.no_grad():
        inputs = _train.inputs_of(made.before.model, batch, torch.device("cpu"))
        states = made.before.model(**inputs, output_hidden_states=True).hidden_states
    real = batch["attention_mask"].bool()
    wanted = [float((1 - torch.cosine_similarity(a, b, dim=-1))[real].mean()) for a, b in itertools.pairwise(states)]
    assert found == pytest.approx(wanted, rel=1e-4)


def test_a_skipped_block_is_a_dropped_block(bench: Callable[..., Bench]) -> None:
    artifact = bench("gpt2").copy()
    with layers.skipped([next(iter(tree.blocks(artifact.model).values()))]):
        skipped = logits(artifact)
    blocks.drop_(artifact.model, [0])
    torch.testing.assert_close(logits(artifact), skipped)


def test_rounds_end_however_sure_the_gates_are(bench: Callable[..., Bench]) -> None:
    made = bench("llama")
    found = layers.trials(made.before, structured(layers=1, steps=5, rate=1e6).settings, made.context)
    assert max(map(abs, found)) > 100


def test_a_loss_that_is_not_finite_is_told(bench: Callable[..., Bench]) -> None:
    made = bench("llama")
    made.before.model.get_parameter("model.norm.weight").data[0] = torch.nan
    with pytest.raises(BadModel, match="the loss is nan"):
        layers.trials(made.before, structured(layers=1).settings, made.context)


# -- promises, order, resuming ----------------------------------------------------------------------------------


def test_ensures_finds_each_kind_of_damage(masked: Callable[..., Bench]) -> None:
    made = masked("llama", "2:4")
    plugin = structured(layers=1, heads=0.5, neurons=0.25)
    after = plugin.run(made.copy(), made.context)
    plugin.ensures(made.before, after)
    model: Any = after.model

    def broken(expected: str, name: str, damage: Callable[[Tensor], Any]) -> None:
        tensor = model.get_parameter(name).data
        kept = tensor.clone()
        damage(tensor)
        with pytest.raises(BrokenPromise, match=expected):
            plugin.ensures(made.before, after)
        tensor.copy_(kept)

    block = "model.layers.0"
    weight = model.get_parameter(f"{block}.mlp.up_proj.weight")
    at = tuple((weight != 0).nonzero()[0].tolist())
    broken("neuron 0 is none of its own", f"{block}.mlp.up_proj.weight", lambda t: t[at].mul_(1.001))
    broken("neuron", f"{block}.mlp.down_proj.weight", lambda t: t.copy_(t.flip(1)))
    broken("head 0", f"{block}.self_attn.q_proj.weight", lambda t: t[0].add_(1e-3))
    broken("head 0", f"{block}.self_attn.o_proj.weight", lambda t: t[:, 0].add_(1e-3))
    broken("input_layernorm.weight: differs", f"{block}.input_layernorm.weight", lambda t: t[0].add_(1e-6))
    broken("model.norm.weight: differs", "model.norm.weight", lambda t: t[0].add_(1e-6))
    name = f"{block}.mlp.down_proj"
    for masks in ({n: m for n, m in after.masks.items() if n != name}, {**after.masks, name: ~after.masks[name]}):
        with pytest.raises(BrokenPromise, match="neuron 0"):
            plugin.ensures(made.before, after.after(masks=masks))
    blocks.slice_(model, 0, neurons=torch.arange(4, 48))
    with pytest.raises(BrokenPromise, match="fits no linear"):
        plugin.ensures(made.before, after)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_linears_that_stand_in_stay(tiny: Tiny, texts: Path, tmp_path: Path, kind: str) -> None:
    made = Bench(standing(tiny(kind)), texts, tmp_path)
    first, second = made.run(heads=0.5, neurons=0.5, criterion="magnitude"), made.before.model
    here, there = tree.layout(first.model), tree.layout(second)
    assert here[0] == dataclasses.replace(there[0], ffn=there[0].ffn // 2)
    assert here[1] == dataclasses.replace(there[1], heads=there[1].heads // 2, kv_heads=there[1].kv_heads // 2)


def test_ensures_wants_the_shapes_that_were_asked_for(bench: Callable[..., Bench]) -> None:
    made = bench("gpt2")
    after = structured(neurons=0.5).run(made.copy(), made.context)
    with pytest.raises(BrokenPromise, match="block 0 is"):
        structured(neurons=0.25).ensures(made.before, after)
    with pytest.raises(BrokenPromise, match="2 blocks are left, 1 were asked for"):
        structured(layers=1).ensures(made.before, after)


def test_blocks_out_of_order_are_found(bench: Callable[..., Bench]) -> None:
    made = bench("llama")
    after = structured(neurons=0.5).run(made.copy(), made.context)
    stack: Any = after.model.get_submodule("model.layers")
    first, second = stack[0].state_dict(), copy.deepcopy(stack[1].state_dict())
    stack[1].load_state_dict(copy.deepcopy(first))
    stack[0].load_state_dict(second)
    with pytest.raises(BrokenPromise, match=r"model.layers.1: is cut out of no block .* none is left"):
        structured(neurons=0.5).ensures(made.before, after)


class _Killed(Exception):
    """The run ends here."""


@pytest.mark.parametrize(
    ("given", "home", "name", "calls"),
    [
        ({"heads": 0.5, "neurons": 0.5, "criterion": "activation"}, cutting, "keep", 3),
        ({"layers": 1, "layer_criterion": "das", "steps": 7, "checkpoint_every": 2}, layers, "_loss_without", 9),
        ({"neurons": 0.5, "criterion": "gates", "steps": 6, "checkpoint_every": 2}, _gates, "penalty", 5),
    ],
)
def test_a_killed_run_resumes_to_the_same_bytes(
    bench: Callable[..., Bench],
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, Any],
    home: Any,
    name: str,
    calls: int,
) -> None:
    made = bench("llama")
    whole = dataclasses.replace(made.context, folder=made.folder / "whole")
    whole.folder.mkdir()
    plugin = structured(**given)
    wanted = plugin.run(made.copy(), whole).model.state_dict()
    count, real = itertools.count(1), getattr(home, name)

    def dying(*args: Any) -> Any:
        if next(count) == calls:
            raise _Killed
        return real(*args)

    monkeypatch.setattr(home, name, dying)
    with pytest.raises(_Killed):
        plugin.run(made.copy(), made.context)
    assert [p for p in made.folder.iterdir() if p.is_file()], "there is a checkpoint"
    found = plugin.run(made.copy(), made.context).model.state_dict()
    assert all(torch.equal(t, wanted[n]) for n, t in found.items())
    assert next(count) > calls


# -- the engine ---------------------------------------------------------------------------------------------------


def test_the_engine_of_a_smaller_model_is_that_model(bench: Callable[..., Bench]) -> None:
    """Parity is checked when it is built; its blocks differ in shape, as does what it keeps of the past."""
    made = bench("llama")
    after = made.run(heads=(1, 2), neurons=(16, 40))
    found, folder = registry.load("exporters", "onnx", Exporter), made.folder / "engine"
    folder.mkdir()
    target = Target(prompt=8, generate=2)
    Engines().build(after, found(found.Settings()), target, folder, Context(folder=folder))
    with contextlib.closing(Engines().open(folder)) as engine:
        assert [key.shape[1] for key, _ in engine.empty_past(1)] == [1, 2]
    written = sum(p.stat().st_size for p in folder.rglob("*.onnx*"))
    assert 4 * after.model.num_parameters() < written < 4 * made.before.model.num_parameters()
