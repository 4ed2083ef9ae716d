"""Recovery: what each method trains and what it leaves, in every family, against formulas and brute force."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compress import tree
from compress.artifact import Artifact
from compress.context import Context, QuietReport
from compress.contracts import Facts
from compress.data import DataSettings, Source
from compress.errors import BadData, BadModel, BadSettings, BrokenPromise, CompressError
from passes import _masks
from passes._adapter import Adapter
from passes._train import Group, classifier, frozen, loss_on, train_
from passes.recover import Recover
from passes.recover.borrowed import Adaptive
from passes.recover.chosen import choose
from passes.recover.settings import KEEPING, Method, RecoverSettings
from passes.recover.support import best, masked_gradients, squared_gradients
from passes.recover.train import attach_
from tests.conftest import CAUSAL, ENCODERS

METHODS: tuple[Method, ...] = get_args(Method)
SUPPORTS = ("squared-gradients", "top-magnitude", "lottery")
CLASSIFIER = {"bert": {"classifier"}, "roberta": {"classifier"}}


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, sentences with classes, and sentences with numbers."""
    folder = tmp_path_factory.mktemp("texts")
    words = "the quick brown fox jumps over the lazy dog and a model is pruned and no zero is lost".split()
    (folder / "text.txt").write_text(" ".join(words[(i * i + 3 * i // 5) % len(words)] for i in range(1200)))
    rows = [(" ".join(words[i % 7 : i % 7 + 3 + i % 4]), i % 2, i / 10) for i in range(24)]
    (folder / "classes.csv").write_text("text,label\n" + "".join(f'"{t}",{c}\n' for t, c, _ in rows))
    (folder / "numbers.csv").write_text("text,label\n" + "".join(f'"{t}",{v}\n' for t, _, v in rows))
    return folder


class Bench:
    """A model, pruned or dense, with data, and what recovery makes of it."""

    def __init__(
        self,
        make: Callable[..., Artifact],
        texts: Path,
        folder: Path,
        kind: str = "llama",
        pattern: str | None = "2:4",
        **rest: Any,
    ) -> None:
        artifact = make(kind, **rest)
        name = {"classification": "classes.csv", "regression": "numbers.csv"}.get(artifact.task, "text.txt")
        table = DataSettings(source=str(texts / name), windows=16, length=12)
        self.report = QuietReport()
        folder.mkdir(exist_ok=True)
        source = Source(table, "training", artifact.task)
        self.context = Context(folder=folder, report=self.report, data={"training": source})
        masks = {}
        for linear_name, layer in tree.block_linears(artifact.model).items() if pattern else ():
            score = layer.weight.detach().abs()
            mask = _masks.keep_n_of_m(score, 2, 4) if pattern == "2:4" else _masks.keep_top(score, float(pattern or 0))
            _masks.apply_(layer.weight, mask)
            masks[linear_name] = mask
        self.before = artifact.after(masks=masks)

    def copy(self) -> Artifact:
        return self.before.after(model=copy.deepcopy(self.before.model))

    def run(self, **given: Any) -> Artifact:
        plugin = recover(**given)
        assert plugin.plan(self.facts()) == self.facts().after(trained=True)
        after = plugin.run(self.copy(), self.context)
        plugin.ensures(self.before, after)
        return after

    def facts(self) -> Facts:
        masks = {n: _masks.fact(m) for n, m in self.before.masks.items()}
        return tree.facts(self.before.model, self.before.task).after(masks=masks)

    def logits(self, artifact: Artifact) -> Tensor:
        with torch.no_grad():
            logits: Tensor = artifact.model(torch.arange(2, 18).view(2, 8)).logits
        return logits


@pytest.fixture
def bench(tiny: Callable[..., Artifact], texts: Path, tmp_path: Path) -> Callable[..., Bench]:
    return lambda kind="llama", folder="run", **rest: Bench(tiny, texts, tmp_path / folder, kind, **rest)


def table(**given: Any) -> RecoverSettings:
    given = {"steps": 3, "batch": 2, "lr": 1e-2, **given}
    ranked = given.get("method") in ("mask_lora", "lora", "hira", "adalora")
    small = {"rank": 4} if ranked else {"probes": 2} if given.get("method", "sparse_delta") == "sparse_delta" else {}
    return RecoverSettings(**small | given)


def recover(**given: Any) -> Recover:
    return Recover(table(**given))


def pattern_of(method: str) -> str | None:
    return None if method in ("lora", "adalora") else "2:4"


def changed(before: Artifact, after: Artifact) -> set[str]:
    old, new = before.model.state_dict(), after.model.state_dict()
    assert list(old) == list(new)
    return {n for n in old if not _masks.same_bits(old[n], new[n])}


def state_bytes(artifact: Artifact) -> Mapping[str, bytes]:
    return {n: t.numpy().tobytes() for n, t in artifact.model.state_dict().items()}


def weights_of(artifact: Artifact) -> set[str]:
    return {f"{n}.weight" for n in tree.block_linears(artifact.model)}


def declared(method: str, artifact: Artifact) -> set[str]:
    """Return what a method may change, written out."""
    model = artifact.model
    weights, every = weights_of(artifact), {n for n, _ in model.named_parameters(remove_duplicate=False)}
    biases = {n.removesuffix("weight") + "bias" for n in weights} & every
    modules = {n.rpartition(".")[0] for n in tree.norms(model)}
    norms = {n for n in every if n.rpartition(".")[0] in modules}
    down = tree.family(model).down
    inputs = {n for n in biases if n.endswith(f"{down}.bias") and "attention" not in n}
    outside = {n for n in every if n.startswith("classifier")}
    of = {
        "full": every, "scale_bias_norm": weights | biases | norms, "ia3": weights | (biases - inputs),
        "ln_tuning": norms,
    }  # fmt: skip
    return of.get(method, weights) | outside


# -- what changes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODERS])
@pytest.mark.parametrize("method", METHODS)
def test_only_what_is_declared_changes_and_zeros_stay(method: str, kind: str, bench: Callable[..., Bench]) -> None:
    b = bench(kind, pattern=pattern_of(method))
    after = b.run(method=method)
    assert changed(b.before, after) <= declared(method, after)
    if method not in ("sparse_delta", "ln_tuning"):
        assert changed(b.before, after) >= weights_of(after)
    assert after.masks is b.before.masks
    for name, mask in after.masks.items():
        layer = tree.block_linears(after.model)[name]
        assert (layer.weight.view(layer.out_features, -1, 4) != 0).sum(-1).le(2).all()
        assert _masks.same_bits(layer.weight[~mask], torch.zeros(int((~mask).sum())))  # not -0 either
    assert [type(m) for m in after.model.modules()] == [type(m) for m in b.before.model.modules()]
    assert not vars(after.model).keys() - vars(b.before.model).keys()
    assert tree.tied(after.model) == tree.tied(b.before.model)
