"""The walk over the blocks: what it gathers, passes on, keeps, resumes and refuses, in every family."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compress import tree
from compress.artifact import Artifact
from compress.context import Context, QuietReport
from compress.data import DataSettings, Source
from compress.errors import BadData, BadModel, BrokenPromise
from passes import _masks
from passes._layerwise import Inputs, Layer, LayerwiseSettings, error, stream, walk_, windows
from passes._layerwise.inputs import Sums
from passes._train import draw, inputs_of
from tests.conftest import CAUSAL, ENCODERS

KINDS = (*CAUSAL, *ENCODERS)
WORDS = "the quick brown fox jumps over the lazy dog a model is pruned and retrained and no zero is lost"
Changed = Callable[[Sequence[Layer]], Mapping[str, Tensor]]


@pytest.fixture(scope="session")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences and answers of many lengths, so that batches are padded, and a running text."""
    folder, words = tmp_path_factory.mktemp("sentences"), WORDS.split()
    texts = [" ".join(words[(i * 7 + j * 3) % len(words)] for j in range(1 + i % 6)) for i in range(24)]
    (folder / "classes.csv").write_text("text,label\n" + "".join(f"{t},{i % 2}\n" for i, t in enumerate(texts)))
    (folder / "answers.csv").write_text("prompt,response\n" + "".join(f"say,{t}\n" for t in texts))
    (folder / "text.txt").write_text(" ".join(words[(i * i) % len(words)] for i in range(400)))
    return folder


class Bench:
    """A tiny model, padded calibration data and a folder."""

    def __init__(
        self, artifact: Artifact, sentences: Path, folder: Path, data: str | None = None, windows: int = 16
    ) -> None:
        self.artifact, self.report = artifact, QuietReport()
        name = data or ("answers.csv" if artifact.task == "causal-lm" else "classes.csv")
        table = DataSettings(source=str(sentences / name), windows=windows, length=12)
        self.context = Context(
            folder=folder, report=self.report, data={"calibration": Source(table, "calibration", artifact.task)}
        )
        self.names = list(tree.block_linears(artifact.model))

    def walk(self, change_: Changed, gram: bool = True, names: Sequence[str] = (), **given: Any) -> dict[str, Tensor]:
        settings = LayerwiseSettings(**{"batch": 4, "sequential": "linear", **given})
        return dict(walk_(self.artifact, names or self.names, settings, self.context, change_, gram=gram).masks)

    def parts(self) -> tuple[list[int], list[int]]:
        count = len(self.context.data["calibration"].examples(self.artifact.tokenizer))
        order = draw(0, count, count, self.context.seed)
        split = count - max(count // 8, 1)
        return order[:split], order[split:]


@pytest.fixture
def bench(tiny: Callable[..., Artifact], sentences: Path, tmp_path: Path) -> Callable[..., Bench]:
    def make(kind: str = "llama", folder: str = "run", change: Callable[[Artifact], Any] = id, **rest: Any) -> Bench:
        artifact = tiny(kind)
        change(artifact)
        (tmp_path / folder).mkdir(exist_ok=True)
        return Bench(artifact, sentences, tmp_path / folder, **rest)

    return make


@torch.no_grad()
def all_reads(b: Bench, part: Sequence[int]) -> dict[str, Tensor]:
    """What every linear reads in a forward of the whole model, one example at a time and so without padding."""
    model, found = b.artifact.model, {n: [] for n in b.names}  # type: ignore[var-annotated]
    linears = tree.block_linears(model)
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, n=n: found[n].append(args[0].flatten(0, -2).clone()))
        for n, layer in linears.items()
    ]
    examples = b.context.data["calibration"].examples(b.artifact.tokenizer)
    for index in part:
        tree.backbone(model)(**inputs_of(model, examples.batch([index]), torch.device("cpu")))
    for hook in hooks:
        hook.remove()
    return {n: torch.cat(rows) for n, rows in found.items()}


class Notes:
    """Changes that note copies of what they are given, and prune or shrink each weight."""

    def __init__(self, change: Callable[[Tensor], Tensor] | None = None) -> None:
        self.change, self.calls, self.inputs = change, list[list[str]](), dict[str, Inputs]()

    def __call__(self, layers: Sequence[Layer]) -> dict[str, Tensor]:
        self.calls.append([layer.name for layer in layers])
        masks = {}
        for layer in layers:
            self.inputs[layer.name] = copy.deepcopy(layer.inputs)
            if self.change:
                masks[layer.name] = self.change(layer.linear.weight.data)
        return masks


def prune(weight: Tensor) -> Tensor:
    mask = _masks.keep_top(weight.abs(), 0.5)
    _masks.apply_(weight, mask)
    return mask


def state(artifact: Artifact) -> dict[str, bytes]:
    return {n: t.numpy().tobytes() for n, t in artifact.model.state_dict().items()}


def rows_among(rows: Tensor, all_rows: Tensor) -> bool:
    """Tell whether every row is, but for rounding, one of many."""
    return bool((torch.cdist(rows.double(), all_rows.double()).min(1).values < 1e-4).all())


# -- what is gathered --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_are_those_of_the_whole_model(kind: str, bench: Callable[..., Bench]) -> None:
    b, notes = bench(kind), Notes()
    before = state(b.artifact)
    assert b.walk(notes, sequential="block") == {}
    assert state(b.artifact) == before
    training, held_out = (all_reads(b, part) for part in b.parts())
    assert sorted(n for call in notes.calls for n in call) == sorted(b.names)
    for name, rows in training.items():
        found = notes.inputs[name]
        assert found.gram is not None
        torch.testing.assert_close(found.gram, rows.t() @ rows / len(rows), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.square, rows.square().mean(0), rtol=1e-4, atol=1e-5)
        assert found.peak is not None
        torch.testing.assert_close(found.peak, rows.abs().amax(0), rtol=1e-4, atol=1e-5)
        assert len(found.held_out) == min(len(held_out[name]), rows.shape[1])
        assert rows_among(found.held_out, held_out[name])
        assert found.cross is None
        assert found.held_out_dense is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sequential", ["linear", "block"])
def test_linears_read_what_the_changed_ones_before_them_give(
    kind: str, sequential: str, bench: Callable[..., Bench]
) -> None:
    """After a walk, the whole model's forward must show each linear the inputs on which it was changed."""
    b, notes = bench(kind), Notes(prune)
    masks = b.walk(notes, sequential=sequential)
    assert masks.keys() == set(b.names)
    assert all(torch.equal(tree.block_linears(b.artifact.model)[n].weight == 0, ~m) for n, m in masks.items())
    reads = all_reads(b, b.parts()[0])
    same = {n: torch.allclose(notes.inputs[n].square, reads[n].square().mean(0), rtol=1e-3, atol=1e-5) for n in b.names}
    if sequential == "linear":
        assert all(same.values())
    else:  # in its block, only the first linears, which read no other one
        blocks = [[n for n in b.names if n.startswith(f"{block}.")] for block in tree.blocks(b.artifact.model)]
        assert all(same[inside[0]] for inside in blocks)
        assert not any(same[inside[-1]] for inside in blocks)


def test_linears_that_read_one_tensor_come_together(bench: Callable[..., Bench]) -> None:
    shared: list[set[int]] = []
    calls: list[list[str]] = []

    def change_(layers: Sequence[Layer]) -> dict[str, Tensor]:
        calls.append([layer.name.rpartition(".")[2] for layer in layers])
        shared.append({id(layer.inputs) for layer in layers})
        return {}

    bench().walk(change_)
    assert calls == 2 * [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
    assert all(len(found) == 1 for found in shared)
    calls.clear()
    shared.clear()
    bench(folder="block").walk(change_, sequential="block")
    assert [len(found) for found in shared] == [4, 4]
    assert [len(found) for found in calls] == [7, 7]


def test_only_chosen_linears_are_shown(bench: Callable[..., Bench]) -> None:
    b, notes = bench(), Notes(prune)
    names = [n for n in b.names if n.endswith("k_proj") or ".mlp.down" in n]
    assert b.walk(notes, names=names).keys() == set(names)
    assert [n for call in notes.calls for n in call] == names
    b, notes = bench(folder="late"), Notes(prune)
    late = [n for n in b.names if ".1." in n]
    b.walk(notes, names=late)
    reads = all_reads(b, b.parts()[0])
    torch.testing.assert_close(notes.inputs[late[0]].square, reads[late[0]].square().mean(0), rtol=1e-4, atol=1e-5)


def test_squares_alone_need_no_products(bench: Callable[..., Bench]) -> None:
    notes, whole = Notes(), Notes()
    bench(folder="squares").walk(notes, gram=False)
    bench(folder="products").walk(whole)
    for name, found in notes.inputs.items():
        gram = whole.inputs[name].gram
        assert found.gram is None
        assert gram is not None
        torch.testing.assert_close(found.square, gram.diagonal(), rtol=1e-5, atol=1e-6)


def test_the_batch_does_not_matter(bench: Callable[..., Bench]) -> None:
    one, many = Notes(), Notes()
    bench(folder="one", data="text.txt", windows=40).walk(one, batch=1)
    bench(folder="many", data="text.txt", windows=40).walk(many, batch=64)
    for name, found in one.inputs.items():
        assert len(found.held_out) == min(5 * 12, found.held_out.shape[1])  # of five windows, a part where in = 32
        torch.testing.assert_close(found.square, many.inputs[name].square, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.held_out, many.inputs[name].held_out, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_dense_reference_reads_what_the_unchanged_model_reads(kind: str, bench: Callable[..., Bench]) -> None:
    b, notes = bench(kind), Notes(prune)
    training, held_out = (all_reads(b, part) for part in b.parts())
    b.walk(notes, reference="dense")
    changed, held_changed = (all_reads(b, part) for part in b.parts())
    for name, found in notes.inputs.items():
        wanted = training[name].t() @ changed[name] / len(training[name])
        assert found.cross is not None
        assert found.held_out_dense is not None
        torch.testing.assert_close(found.cross, wanted, rtol=1e-3, atol=1e-4)
        both = torch.cat([found.held_out_dense, found.held_out], 1)
        assert rows_among(both, torch.cat([held_out[name], held_changed[name]], 1)), "of one token each"
    last = notes.inputs[b.names[-1]]
    assert last.held_out_dense is not None
    assert not torch.allclose(last.held_out, last.held_out_dense, rtol=1e-2)


def test_error_is_a_share_of_what_should_come_out(tiny: Callable[..., Artifact]) -> None:
    linear = torch.nn.Linear(3, 2)
    x, dense = torch.randn(5, 3), torch.randn(5, 3)
    layer = Layer("a", linear, Inputs(None, torch.ones(3), x))
    old, new = linear.weight.detach(), torch.randn(2, 3)
    assert error(layer, old) == 0
    assert error(layer, torch.zeros(2, 3)) == pytest.approx(1)
    wanted = torch.dist(x @ old.T, x @ new.T).square() / (x @ old.T).square().sum()
    assert error(layer, new) == pytest.approx(float(wanted), rel=1e-5)
    layer = Layer("a", linear, Inputs(None, torch.ones(3), x, torch.zeros(3, 3), dense))
    wanted = torch.dist(dense @ old.T, x @ new.T).square() / (dense @ old.T).square().sum()
    assert error(layer, new) == pytest.approx(float(wanted), rel=1e-5)
    assert error(Layer("a", linear, Inputs(None, torch.zeros(3), torch.zeros(5, 3))), new) == 0


# -- capture -----------------------------------------------------------------------------------------------------------


def test_capture_runs_no_block_and_shares_what_recurs(bench: Callable[..., Bench], tmp_path: Path) -> None:
    b = bench("qwen3", data="text.txt")
    config = b.artifact.model.config
    config.layer_types, config.sliding_window = ["full_attention", "sliding_attention"], 4
    b.artifact.model.model.has_sliding_layers = True
    for block in tree.blocks(b.artifact.model).values():
        block.to("meta")
    found = windows(b.artifact, 4, b.context, "a test", stream.Stream(tmp_path / "s", torch.device("cpu")))
    masks = [call[1]["attention_mask"] for call in found[0].calls]
    assert masks[1] is not None
    assert masks[0] is not masks[1]
    tables = {id(t) for chunk in found for _, kwargs in chunk.calls for t in kwargs["position_embeddings"]}
    assert len(tables) == 2
    assert len({id(chunk.calls[1][1]["attention_mask"]) for chunk in found}) == len({len(c.real) for c in found})


def test_sliding_and_full_attention_are_replayed(bench: Callable[..., Bench]) -> None:
    b, notes = bench("mistral", data="text.txt"), Notes(prune)
    b.artifact.model.config.sliding_window = 3
    b.walk(notes)
    reads = all_reads(b, b.parts()[0])
    for name, rows in reads.items():
        torch.testing.assert_close(notes.inputs[name].square, rows.square().mean(0), rtol=1e-3, atol=1e-5)


def test_half_precision_is_walked_as_it_is(bench: Callable[..., Bench]) -> None:
    b, notes = bench(change=lambda a: a.model.bfloat16()), Notes(prune)
    b.walk(notes)
    assert {p.dtype for p in b.artifact.model.parameters()} == {torch.bfloat16}
    assert {i.square.dtype for i in notes.inputs.values()} == {torch.float32}


def test_only_one_groups_statistics_live_at_a_time(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[Inputs]] = []

    def sums(*args: Any, **kwargs: Any) -> Sums:
        assert [ref for ref in alive if ref() is not None] == []
        return Sums(*args, **kwargs)

    def change_(layers: Sequence[Layer]) -> dict[str, Tensor]:
        alive.extend(weakref.ref(layer.inputs) for layer in layers)
        return {}

    monkeypatch.setattr("passes._layerwise.block.Sums", sums)
    bench().walk(change_)
    assert len(alive) == 14


# -- bytes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", ["sparse", "dense"])
def test_spilling_to_disk_changes_no_byte(
    reference: str, bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    held, notes, spilled = bench(folder="held"), Notes(prune), Notes(prune)
    held.walk(notes, reference=reference)
    monkeypatch.setattr(stream, "MEMORY", 5000)
    b = bench(folder="spilled")
    b.walk(spilled, reference=reference)
    assert state(b.artifact) == state(held.artifact)
    for name, found in notes.inputs.items():
        for kind, tensor in vars(found).items():
            other = getattr(spilled.inputs[name], kind)
            assert tensor is None or _masks.same_bits(tensor, other)


def test_a_stream_holds_no_more_than_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MEMORY", 100)
    device = torch.device("cpu")
    made = stream.Stream(tmp_path, device)
    chunks = [torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(i)) for i in range(3)]  # 64 bytes each
    for number, chunk in enumerate(chunks):
        made.enter(number, chunk)
    assert [made.get(n) is chunk for n, chunk in enumerate(chunks)] == [True, False, False]
    assert all(torch.equal(made.get(n), chunk) for n, chunk in enumerate(chunks))
    made.put(1, 1, chunks[0])
    again = stream.Stream(tmp_path, device)
    again.enter(1, chunks[2])
    assert [again.at(n) for n in range(3)] == [0, 1, 0]
    assert torch.equal(again.get(1), chunks[0])
    assert len(list(tmp_path.iterdir())) == 3


class Killed(Exception):
    """The process ends here."""


@pytest.mark.parametrize("reference", ["sparse", "dense"])
@pytest.mark.parametrize("sequential", ["linear", "block"])
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_killed_and_resumed_gives_the_same_bytes(
    kind: str, sequential: str, reference: str, bench: Callable[..., Bench]
) -> None:
    given: dict[str, Any] = {"sequential": sequential, "reference": reference}
    whole, notes = bench(kind, folder="whole"), Notes(prune)
    masks = whole.walk(notes, **given)
    seen: list[str] = []

    def change_(layers: Sequence[Layer]) -> dict[str, Tensor]:
        if layers[-1].name == b.names[-1] and not resumed:
            raise Killed
        seen.extend(layer.name for layer in layers)
        return {layer.name: prune(layer.linear.weight.data) for layer in layers}

    b, resumed = bench(kind, folder="killed"), False
    with pytest.raises(Killed):
        b.walk(change_, **given)
    resumed, seen = True, []
    b = bench(kind, folder="killed")  # as the step before left it
    found = b.walk(change_, **given)
    assert [n for n in b.names if ".0." in n and n in seen] == [], "a finished block is not done again"
    assert state(b.artifact) == state(whole.artifact)
    assert {n: m.tolist() for n, m in found.items()} == {n: m.tolist() for n, m in masks.items()}
    b = bench(kind, folder="killed")  # killed after the walk
    seen = []
    b.walk(change_, **given)
    assert seen == []
    assert state(b.artifact) == state(whole.artifact)


@pytest.mark.parametrize("after", [1, 5, 7])
def test_killed_between_chunks_resumes_to_the_same_bytes(
    after: int, bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = bench(folder="whole")
    whole.walk(Notes(prune), reference="dense")
    put, left = stream.Stream.put, after

    def dying(self: stream.Stream, chunk: int, block: int, hidden: Tensor) -> None:
        nonlocal left
        left -= block > 0
        if left < 0:
            raise Killed
        put(self, chunk, block, hidden)

    with monkeypatch.context() as patch:
        patch.setattr(stream.Stream, "put", dying)
        with pytest.raises(Killed):
            bench(folder="killed").walk(Notes(prune), reference="dense")
    b, notes = bench(folder="killed"), Notes(prune)
    b.walk(notes, reference="dense")
    assert not any(".0." in name for name in notes.inputs)
    assert state(b.artifact) == state(whole.artifact)


@pytest.mark.parametrize("kind", ["llama-tied", "gpt2", "bert"])
@pytest.mark.parametrize("killed", [False, True])
def test_blocks_on_disk_are_walked_alike(kind: str, killed: bool, bench: Callable[..., Bench], tmp_path: Path) -> None:
    whole = bench(kind, folder="whole")
    (tmp_path / "saved").mkdir()
    whole.artifact.save(tmp_path / "saved")
    masks = whole.walk(Notes(prune), reference="dense")
    b = bench(kind, folder="stored")

    def change_(layers: Sequence[Layer]) -> dict[str, Tensor]:
        if layers[-1].name == b.names[-1]:
            raise Killed
        return {layer.name: prune(layer.linear.weight.data) for layer in layers}

    if killed:
        b.artifact = Artifact.load(tmp_path / "saved", stored=True, changes=tmp_path / "changes")
        with pytest.raises(Killed):
            b.walk(change_, reference="dense")
    b.artifact = Artifact.load(tmp_path / "saved", stored=True, changes=tmp_path / "changes")
    found = b.walk(Notes(prune), reference="dense")
    assert {n: m.tolist() for n, m in found.items()} == {n: m.tolist() for n, m in masks.items()}
    assert all(p.is_meta for block in tree.blocks(b.artifact.model).values() for p in block.parameters())
    for name, tensor in whole.artifact.model.state_dict().items():
        assert _masks.same_bits(b.artifact.tensor(name), tensor), name


# -- faults ------------------------------------------------------------------------------------------------------------


def test_values_that_are_not_finite_name_the_linear(bench: Callable[..., Bench]) -> None:
    b = bench(change=lambda a: a.model.model.layers[0].post_attention_layernorm.weight.data.fill_(torch.nan))
    with pytest.raises(BadModel, match=r"^model\.layers\.0\.mlp\.gate_proj: reads values that are NaN") as error:
        b.walk(Notes())
    assert "\n" not in str(error.value)


def test_inputs_of_zero_are_fine(bench: Callable[..., Bench]) -> None:
    b, notes = bench("opt", change=lambda a: a.model.model.decoder.layers[0].fc1.bias.data.fill_(-1e9)), Notes()
    b.walk(notes)
    assert not notes.inputs["model.decoder.layers.0.fc2"].square.any()


def _keep(weight: Tensor) -> Tensor:
    return torch.ones_like(weight, dtype=torch.bool)


@pytest.mark.parametrize(
    ("change", "fault", "words"),
    [
        (lambda w: _keep(w.fill_(torch.inf)), BadModel, "q_proj: its new weights are NaN or infinite"),
        (lambda w: ~_keep(w), BrokenPromise, "q_proj: weights that its mask prunes are not zero"),
        (lambda w: _keep(w)[:1], BrokenPromise, r"q_proj: its mask is bool \[1, 32\], and must be bool \[32, 32\]"),
        (lambda w: _keep(w).float(), BrokenPromise, "q_proj: its mask is float32"),
    ],
)
def test_what_a_pass_leaves_is_checked(
    change: Callable[[Tensor], Tensor], fault: type[Exception], words: str, bench: Callable[..., Bench]
) -> None:
    b = bench()
    with pytest.raises(fault, match=words):
        b.walk(Notes(change))
    assert not list(b.context.folder.rglob("layerwise/*.safetensors")), "nothing bad is kept"


def test_foreign_masks_and_lost_zeros_are_noticed(bench: Callable[..., Bench]) -> None:
    with pytest.raises(BrokenPromise, match="lm_head: was given a mask"):
        bench(folder="foreign").walk(lambda layers: {"lm_head": torch.ones(1, 1, dtype=torch.bool)})
    b = bench(folder="lost")
    name = b.names[0]
    mask = prune(tree.block_linears(b.artifact.model)[name].weight.data)
    b.artifact = b.artifact.after(masks={name: mask})

    def fill_(layers: Sequence[Layer]) -> dict[str, Tensor]:
        layers[0].linear.weight.data.fill_(1)
        return {}

    with pytest.raises(BrokenPromise, match="q_proj: weights that its mask prunes are not zero"):
        b.walk(fill_)


def test_a_name_of_no_linear_is_told(bench: Callable[..., Bench]) -> None:
    with pytest.raises(BrokenPromise, match="lm_head: is no linear of a block"):
        bench().walk(Notes(), names=["model.layers.0.mlp.up_proj", "lm_head"])


def test_a_linear_that_its_block_never_calls_is_told(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.artifact.model.model.layers[0].mlp.spare = torch.nn.Linear(2, 2)
    name = "model.layers.0.mlp.spare"
    with pytest.raises(BadModel, match=f"{name}: its block calls it 0 times"):
        b.walk(Notes(), names=[name])


def test_too_little_data_is_told(bench: Callable[..., Bench], sentences: Path) -> None:
    with pytest.raises(BadData, match="needs 2 windows or more, one to judge by, got 1"):
        bench(windows=1).walk(Notes())
    (sentences / "short.txt").write_text("the fox")
    with pytest.raises(BadData, match="less than one window of 12"):
        bench(data="short.txt").walk(Notes())
