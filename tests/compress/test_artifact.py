"""Artifacts on disk: what is saved comes back bit for bit, twice alike, and whoever touches it is found out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.numpy import load_file

from compress import artifact as artifacts
from compress import files, tree
from compress.artifact import Artifact, Step
from compress.card import FORMAT
from compress.errors import BadModel, BrokenPromise, NoSpace, Tampered
from compress.facts import GridFact, MaskFact, Planned
from compress.known import known
from tests.conftest import CAUSAL, ENCODERS

Tiny = Callable[..., Artifact]
NAME = "model.layers.0.mlp.up_proj"  # [64, 32]


def saved(artifact: Artifact, folder: Path) -> Path:
    folder.mkdir()
    artifact.save(folder)
    return folder


def masked(artifact: Artifact, every: int = 3) -> Artifact:
    """Mask every third weight of every linear; rows do not end on whole bytes of the packed mask."""
    masks = {}
    for name, linear in tree.block_linears(artifact.model).items():
        mask = (torch.arange(linear.weight.numel()) % every != 0).view_as(linear.weight)
        linear.weight.data[~mask] = 0
        masks[name] = mask
    return artifact.after(masks=masks)


@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODERS])
def test_what_is_saved_comes_back(tiny: Tiny, kind: str, tmp_path: Path) -> None:
    step = Step(use="magnitude", settings={"sparsity": 0.3}, notes=("a note",))
    given = masked(tiny(kind)).after(step)
    again = Artifact.load(saved(given, tmp_path / "a"))
    assert again.task == given.task
    assert again.lineage == (step,)
    old, new = given.model.state_dict(), again.model.state_dict()
    assert old.keys() == new.keys()
    assert all(torch.equal(t, new[n]) for n, t in old.items())
    assert again.masks.keys() == given.masks.keys()
    assert all(torch.equal(m, again.masks[n]) for n, m in given.masks.items())
    assert all(m.dtype == torch.bool for m in again.masks.values())
    assert tree.tied(again.model) == tree.tied(given.model)
    text = "the quick brown fox, 12 times;\n\tünïcode"
    assert again.tokenizer(text)["input_ids"] == given.tokenizer(text)["input_ids"]
    assert again.tokenizer.eos_token_id == given.tokenizer.eos_token_id == 1
    ids = torch.arange(2, 20).view(2, 9)
    assert torch.equal(again.model(ids).logits, given.model(ids).logits)


def test_plain_transformers_opens_it(tiny: Tiny, tmp_path: Path) -> None:
    given = masked(tiny("gpt2"))
    folder = saved(given, tmp_path / "a")
    ids = torch.arange(2, 20).view(2, 9)
    plain: Any = tf.AutoModelForCausalLM.from_pretrained(folder).eval()  # type: ignore[no-untyped-call]
    # Linear and Conv1D sum the same products in another order.
    assert torch.allclose(plain(ids).logits, given.model(ids).logits, atol=1e-5)
    assert (plain.transformer.h[0].mlp.c_fc.weight == 0).float().mean() == pytest.approx(1 / 3, abs=1e-3)


def test_grouped_query_attention_and_explicit_head_dim(tiny: Tiny, tmp_path: Path) -> None:
    again = Artifact.load(saved(tiny("qwen3"), tmp_path / "a"))
    assert (again.model.config.num_key_value_heads, again.model.config.head_dim) == (2, 16)
    linears = tree.block_linears(again.model)
    assert linears["model.layers.0.self_attn.q_proj"].weight.shape == (64, 32)
    assert linears["model.layers.0.self_attn.k_proj"].weight.shape == (32, 32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_precision_stays(tiny: Tiny, dtype: torch.dtype, tmp_path: Path) -> None:
    given = tiny("llama")
    given.model.to(dtype=dtype)  # type: ignore[call-arg]
    folder = saved(given, tmp_path / "a")
    assert {p.dtype for p in Artifact.load(folder).model.parameters()} == {dtype}
    assert {p.dtype for p in Artifact.load(folder, dtype=torch.float32).model.parameters()} == {torch.float32}


def test_the_same_bytes_on_a_rerun(tiny: Tiny, tmp_path: Path) -> None:
    a, b = (saved(masked(tiny("llama-tied")), tmp_path / n) for n in "ab")
    assert files.digests(a) == files.digests(b)
    assert artifacts.digest(a) == artifacts.digest(b)
    other = saved(masked(tiny("llama-tied", seed=1)), tmp_path / "c")
    assert artifacts.digest(other) != artifacts.digest(a)
    # What was opened from a folder once is the same in every folder after it.
    opened = saved(Artifact.load(a), tmp_path / "d")
    assert files.digests(saved(Artifact.load(opened), tmp_path / "e")) == files.digests(opened)


def test_masks_are_packed_to_bits(tiny: Tiny, tmp_path: Path) -> None:
    folder = saved(masked(tiny("llama")), tmp_path / "a")
    packed = load_file(folder / artifacts.MASKS)
    assert packed[NAME].shape == (64, 4)
    assert int(packed[NAME][0, 0]) == 0b01101101  # True = kept: 0, 3 and 6 are pruned


def test_side_files_above_a_size(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "SHARD", "40KB")
    given = masked(tiny("llama"))
    folder = saved(given, tmp_path / "a")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert not (folder / "model.safetensors").exists()
    again = Artifact.load(folder)
    assert all(torch.equal(t, again.model.state_dict()[n]) for n, t in given.model.state_dict().items())
    next(iter(sorted(folder.glob("model-*.safetensors")))).unlink()
    with pytest.raises(Tampered, match=r"model-00001-of-\d+\.safetensors: is missing"):
        Artifact.load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", artifacts.MASKS, "config.json", "tokenizer.json"])
def test_a_file_touched_by_hand_is_named(tiny: Tiny, name: str, tmp_path: Path) -> None:
    folder = saved(masked(tiny("llama")), tmp_path / "a")
    content = bytearray((folder / name).read_bytes())
    content[-2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(Tampered) as caught:
        Artifact.load(folder)
    assert str(folder / name) in str(caught.value)
    assert "was changed" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_gone_is_named(tiny: Tiny, tmp_path: Path) -> None:
    folder = saved(masked(tiny("llama")), tmp_path / "a")
    (folder / artifacts.MASKS).unlink()
    with pytest.raises(Tampered, match=r"masks\.safetensors: is missing"):
        Artifact.load(folder)


def test_measured_figures_beside_it_do_not_count(tiny: Tiny, tmp_path: Path) -> None:
    folder = saved(tiny("llama"), tmp_path / "a")
    before = artifacts.digest(folder)
    (folder / "measured.json").write_text("{}")
    Artifact.load(folder)
    assert artifacts.digest(folder) == before


def _edit(card: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in card.items() if k != "files"}


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, BadModel, r"no compress\.json in it"),
        ("{", Tampered, "not readable as JSON"),
        ("[]", Tampered, "entries are missing"),
        (_edit, Tampered, "entries are missing"),
        (lambda card: card | {"format": 99}, BadModel, f"has format 99, this version reads {FORMAT}"),
    ],
)
def test_a_card_that_is_none(tiny: Tiny, content: Any, error: type[Exception], message: str, tmp_path: Path) -> None:
    folder = saved(tiny("llama"), tmp_path / "a")
    card = folder / artifacts.CARD
    if content is None:
        card.unlink()
    else:
        card.write_text(content if isinstance(content, str) else json.dumps(content(files.read_json(card))))
    with pytest.raises(error, match=message):
        Artifact.load(folder)


def test_a_weight_under_a_mask_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    given = masked(tiny("llama"))
    tree.block_linears(given.model)[NAME].weight.data[0, 0] = 1e-30
    with pytest.raises(BrokenPromise, match=f"{NAME}: weights that the mask prunes"):
        saved(given, tmp_path / "a")


def test_minus_zero_under_a_mask_is_zero(tiny: Tiny, tmp_path: Path) -> None:
    given = masked(tiny("llama"))
    tree.block_linears(given.model)[NAME].weight.data[0, 0] = -0.0
    loaded = Artifact.load(saved(given, tmp_path / "a"))
    assert torch.equal(loaded.masks[NAME], given.masks[NAME])


@pytest.mark.parametrize("name", ["lm_head", "model.layers.0.mlp.no_proj", "model.layers.0.mlp.down_proj"])
def test_a_mask_that_fits_no_linear_is_refused(tiny: Tiny, name: str, tmp_path: Path) -> None:
    given = tiny("llama").after(masks={name: torch.ones(64, 32, dtype=torch.bool)})
    with pytest.raises(BrokenPromise, match="fits no linear"):
        saved(given, tmp_path / "a")


def test_a_full_disk_is_a_fault_of_the_user(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What safetensors raises on a full disk: an error of its own, without errno."""
    from safetensors import SafetensorError

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("compress.masks.write", full)
    with pytest.raises(NoSpace, match="free some"):
        saved(masked(tiny("llama")), tmp_path / "a")


def test_nothing_is_printed(tiny: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Artifact.load(saved(tiny("llama"), tmp_path / "a"))
    assert capfd.readouterr() == ("", "")


PLAN = {
    NAME: Planned(grid=GridFact(bits=4, group_size=32, zero=True), pattern="2:4"),
    "model.layers.0.mlp.down_proj": Planned(grid=GridFact(bits=8, group_size=None, activation="dynamic")),
    "model.layers.1.mlp.up_proj": Planned(),
}


def test_a_plan_comes_back_and_is_part_of_the_digest(tiny: Tiny, tmp_path: Path) -> None:
    planned, plain = (saved(tiny("llama").after(plan=p), tmp_path / n) for n, p in (("a", PLAN), ("b", {})))
    assert Artifact.load(planned).plan == PLAN
    assert Artifact.load(plain).plan == {}
    assert artifacts.digest(planned) != artifacts.digest(plain)
    turned = saved(tiny("llama").after(plan=dict(reversed(PLAN.items()))), tmp_path / "c")
    assert artifacts.digest(turned) == artifacts.digest(planned), "the order of a plan says nothing"
    other = PLAN | {NAME: Planned(pattern="2:4")}
    assert artifacts.digest(saved(tiny("llama").after(plan=other), tmp_path / "d")) != artifacts.digest(planned)
    again = saved(Artifact.load(planned), tmp_path / "e")
    assert files.read_json(again / artifacts.CARD)["plan"] == files.read_json(planned / artifacts.CARD)["plan"]


def test_what_a_grid_might_have_become_is_no_longer_told(tiny: Tiny, tmp_path: Path) -> None:
    either = GridFact(bits=8, group_size=None, others=(GridFact(bits=4, group_size=32),))
    found = Artifact.load(saved(tiny("llama").after(plan={NAME: Planned(grid=either)}), tmp_path / "a"))
    assert found.plan == {NAME: Planned(grid=GridFact(bits=8, group_size=None))}


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "made"
    (folder / "blocks" / "00").mkdir(parents=True)
    (folder / "index.json").write_text("{}")
    (folder / "blocks" / "00" / "ffn.safetensors").write_bytes(b"weights")
    return folder


def test_a_library_goes_along_without_being_copied(tiny: Tiny, library: Path, tmp_path: Path) -> None:
    first = saved(tiny("llama").after(library=library), tmp_path / "a")
    opened = Artifact.load(first)
    assert opened.library == first / artifacts.LIBRARY
    second = saved(opened, tmp_path / "b")
    for folder in (first, second):
        assert files.digests(folder / artifacts.LIBRARY) == files.digests(library)
        same = (folder / artifacts.LIBRARY / "blocks/00/ffn.safetensors").stat().st_ino
        assert same == (library / "blocks/00/ffn.safetensors").stat().st_ino
    shutil.rmtree(library)
    shutil.rmtree(first)
    assert (second / artifacts.LIBRARY / "blocks/00/ffn.safetensors").read_bytes() == b"weights"
    assert Artifact.load(second).library == second / artifacts.LIBRARY
    bare = saved(Artifact.load(second).after(library=None), tmp_path / "c")
    assert Artifact.load(bare).library is None
    assert not (bare / artifacts.LIBRARY).exists()


def test_a_library_is_part_of_the_digest(tiny: Tiny, library: Path, tmp_path: Path) -> None:
    folders = [saved(tiny("llama").after(library=p), tmp_path / str(i)) for i, p in enumerate((library, library, None))]
    assert artifacts.digest(folders[0]) == artifacts.digest(folders[1]) != artifacts.digest(folders[2])
    files.write_atomic(library / "index.json", '{"a": 1}')
    assert artifacts.digest(saved(tiny("llama").after(library=library), tmp_path / "3")) != artifacts.digest(folders[0])
    Artifact.load(folders[0])  # which holds the file as it was


@pytest.mark.parametrize("name", ["index.json", "blocks/00/ffn.safetensors"])
def test_a_library_touched_by_hand_is_named(tiny: Tiny, library: Path, name: str, tmp_path: Path) -> None:
    folder = saved(tiny("llama").after(library=library), tmp_path / "a")
    path = folder / artifacts.LIBRARY / name
    files.write_atomic(path, "other bytes")
    with pytest.raises(Tampered, match="was changed") as caught:
        Artifact.load(folder)
    assert str(path) in str(caught.value)
    path.unlink()
    with pytest.raises(Tampered, match="is missing"):
        Artifact.load(folder)
    shutil.rmtree(folder / artifacts.LIBRARY)
    with pytest.raises(Tampered, match="is missing"):
        Artifact.load(folder)


def test_weights_on_disk_carry_plan_and_library_too(tiny: Tiny, library: Path, tmp_path: Path) -> None:
    folder = saved(tiny("llama").after(plan=PLAN, library=library), tmp_path / "a")
    again = Artifact.load(saved(Artifact.load(folder, stored=True), tmp_path / "b"), stored=True)
    assert (again.plan, again.library) == (PLAN, tmp_path / "b" / artifacts.LIBRARY)


def test_what_is_known_of_an_artifact_is_read_off_it(tiny: Tiny, library: Path, tmp_path: Path) -> None:
    given = masked(tiny("llama"))
    artifact = Artifact.load(saved(given.after(plan=PLAN, library=library), tmp_path / "a"))
    shapes = tree.facts(given.model, "causal-lm")
    masks = dict.fromkeys(given.masks, MaskFact("unstructured", 1 / 3))
    bounds = shapes.after(masks=masks | {"gone": MaskFact("2:4", 0.5)}, trained=True, dropped=2, open=True, plan={})
    assert known(artifact, bounds) == shapes.after(masks=masks, trained=True, dropped=2, plan=PLAN, library=True)


def test_after_adds_a_step_and_leaves_the_old_alone(tiny: Tiny) -> None:
    given = tiny("llama")
    step = Step(use="x")
    assert given.after(step).lineage == (step,)
    assert given.after(task="embedding").lineage == given.lineage == ()
