"""The Puzzle benchmark's own parts: what is run, what is compared with what, what was left of a budget, the pages."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks import _cases, _score
from benchmarks._ledger import Results, Row, read
from benchmarks._passes import context_of
from benchmarks.low_bit.trained import opened
from benchmarks.puzzle import cells, geometry, making, picture, report, run, slack, timing
from benchmarks.puzzle.cells import ALL, FULL, QUICK, STRUCTURE, Cell
from benchmarks.puzzle.points import points, rivals
from compress import loading, registry, tree
from compress.artifact import Artifact
from compress.context import Context, QuietReport
from compress.contracts import Pass
from compress.errors import BadModel
from compress.facts import Planned

SHARES = {"single/dense": 1.0, "single/int4": 0.7, "structure/uniform/0.5": 0.5, "all/greedy/0.5": 0.48}


def row(name: str, loss: float, **more: Any) -> tuple[str, Row]:
    """Return an engine's row, whose windows all lose a little more one after the other."""
    curve, way, amount = (*name.split("/"), "0")[:3]
    losses = [loss + i / 100 for i in range(20)]
    about = {"losses": losses, "unhealed": [v + 1 for v in losses], "hits": [1 / loss] * 20, "file_mib": 1.0}
    return f"engine/{name}", {"curve": curve, "way": way, "amount": float(amount), **about, **more}


def results(puzzle: float = 2.05) -> dict[str, Row]:
    """Return a small finished run, with one point of Puzzle on the curve of all options."""
    figure = {"limit": 0.5, "predicted": 0.45, "measured": 0.49, "low": 0.48, "high": 0.5, "resolved": True}
    rounds = [{"score": 1.0, "figures": {"decode_ms": figure}}]
    rows = dict([row("single/dense", 2.0), row("single/control", 1.9), row("single/int4", 2.1)])
    rows |= dict([row("structure/uniform/0.5", 2.4), row("all/greedy/0.5", 2.2)])
    chosen = {"rounds": rounds, "solution": [{"score": 1.0}], "upgrades": []}
    rows |= dict([row("all/puzzle/0.5", puzzle, **chosen), row("structure/puzzle/0.5", 2.3, **chosen)])
    rows |= dict([row("structure/no bld/0.5", 2.35)])
    shares = {**SHARES, "single/control": 1.0, "all/puzzle/0.5": 0.5, "structure/puzzle/0.5": 0.5}
    timed = {f"engine/{n}": {"decode": [s, s, 0.998 * s, 1.002 * s]} for n, s in shares.items()}
    clock = {"clock": "wall", "processes": 3, "load": 0.1, "flags": [], "engines": timed}
    return rows | {f"clock/{batch}/0": {"batch": batch, **clock} for batch in cells.BATCHES}


@pytest.mark.parametrize("plan", [FULL, QUICK])
def test_every_choice_and_every_pass_after_it_can_be_asked_for(plan: cells.Plan) -> None:
    every = list(cells.cells(plan))
    assert len({c.key for c in every}) == len(every)
    assert {c.way for c in every} >= {"dense", "control", "puzzle", "uniform", "greedy", "random", "int4", "int8"}
    for cell in every:
        if cell.chosen:
            registry.load("passes", "puzzle", Pass).Settings(**cells.choice(cell, plan))
        for use, settings in making._uses(cell, plan, codes=cell.curve == ALL, zeros=cell.curve == ALL):
            plugin = registry.load("passes", use, Pass)
            assert plugin.Settings(**settings).model_fields_set == settings.keys()


def test_every_engine_is_healed_with_as_many_tokens() -> None:
    for plan in (FULL, QUICK):
        for cell in cells.cells(plan):
            for codes in (False, True) if cell.way != cells.DENSE else ():
                uses = making._uses(cell, plan, codes=codes, zeros=True)
                trained = [s for _, s in uses if "steps" in s]
                assert sum(s["steps"] for s in trained) == plan.heal, cell
                assert {(s["batch"], s["held_out"]) for s in trained} == {(plan.batch, 0.1)}


def test_the_full_run_has_four_budgets_or_more_and_every_ablation() -> None:
    ways = {c.way for c in cells.cells(FULL)}
    assert all(len(budgets) >= 4 for budgets in FULL.budgets.values())
    assert set(cells.ABLATIONS) | set(cells.DROPS) <= ways
    speed = report.PAPER[0]
    assert all(any(abs(b - 1 / speed) < 0.002 for b in budgets) for budgets in FULL.budgets.values())


def test_what_is_left_is_told_of_the_round_that_was_kept() -> None:
    def told(score: float, measured: float) -> dict[str, Any]:
        return {"score": score, "figures": {"decode_ms": {"limit": 1.0, "measured": measured}}}

    found = {"solution": [{"score": 2.0}], "rounds": [told(1.0, 1.2), told(2.0, 0.9), told(3.0, 0.5)]}
    assert slack.left(found) == pytest.approx({"decode_ms": 0.1})


def test_single_upgrades_are_found_by_what_is_left(tmp_path: Path) -> None:
    ids = torch.randint(0, 4096, (4, 16), generator=torch.Generator().manual_seed(0))
    case = demo_case(tmp_path)
    context = dataclasses.replace(
        context_of(tmp_path / "x", calibration=ids, training=ids), targets={"a": cells.TARGET}, cache=tmp_path / "cache"
    )
    (tmp_path / "x").mkdir()
    settings = {"attention": ("parent",), "ffn": ("parent", "none"), "budget": {"parameters": "0.9x"}, "windows": 2}
    names = {f"block {i} {p}": "parent, fp32" for i in range(6) for p in ("attention", "ffn")}
    names |= {f"block {i} ffn": "none" for i in (1, 2)}

    def upgrades(room: float) -> list[Any]:
        figures = {"parameters": {"limit": room, "measured": 0.0}}
        solution = [{"score": 1.0, "dense": {}}]
        told = {"choice": [names], "solution": solution, "rounds": [{"score": 1.0, "figures": figures}]}
        return slack.upgrades(settings, opened(case), told, context)

    size = 3 * 256 * 768 + 256  # and the norm in front
    assert upgrades(size - 1) == []
    found = upgrades(size)
    assert {place for place, _, _ in found} <= {"block 1 ffn", "block 2 ffn"}
    assert found
    assert found[0][1:] == ["parent, fp32", {"parameters": size}]


def test_rivals_are_the_others_that_are_as_fast_best_first() -> None:
    found = points(results())
    own = found["engine/all/puzzle/0.5"]
    assert [p.cell.way for p in rivals(own, found, 1)] == ["greedy", "uniform"]
    assert [p.cell.way for p in rivals(own, found, 1, curve=STRUCTURE)] == ["uniform"]
    slow = points({k: v for k, v in results().items() if "0.5" not in k or "puzzle" in k})
    assert rivals(slow["engine/all/puzzle/0.5"], slow, 8) == []


@pytest.mark.parametrize(("loss", "verdict"), [(2.05, "better"), (2.2, "even"), (2.3, "worse")])
def test_the_page_tells_who_is_better_at_a_speed(loss: float, verdict: str) -> None:
    page = report.render({"case": "x"}, results(loss))
    line = next(x for x in page.splitlines() if x.startswith("| all | 0.5x | 1 |"))
    assert "all: greedy 0.5x" in line
    assert line.endswith(f"{verdict} |")


def test_the_page_tells_of_budgets_ablations_the_paper_and_what_failed() -> None:
    rows = results() | {"engine/all/random/0.38": {"failed": "no choice keeps it"}}
    page = report.render({"case": "x"}, rows)
    budget = next(x for x in page.splitlines() if x.startswith("| all | puzzle |"))
    assert "| 0.450 | 0.490 (0.480 … 0.500) | 0.500 (0.499 … 0.501) | 1.002 | kept | 1 | 0 |" in budget
    assert "| structure | no bld | 0.5 | 2.4450 | +0.0500 (+0.0500 … +0.0500) |" in page
    assert "| structure | without gkd | 0.5 | 3.3950 | +1.0000 (+1.0000 … +1.0000) |" in page
    assert "none so fast" in page
    assert "- all/random/0.38: no choice keeps it" in page


def test_a_noisy_clock_decides_nothing_about_a_budget() -> None:
    rows = results()
    rows["engine/all/puzzle/0.5"]["rounds"][0]["figures"]["decode_ms"]["resolved"] = False
    for batch in cells.BATCHES:
        rows[f"clock/{batch}/0"]["engines"]["engine/all/puzzle/0.5"]["decode"] = [0.5, 0.5, 0.45, 0.55]
    line = next(x for x in report.render({}, rows).splitlines() if x.startswith("| all | puzzle | 0.5 |"))
    assert line.endswith("| 1.100 | not resolvable here | 1 | 0, unsure |")


def test_the_picture_is_one_svg_with_both_curves(tmp_path: Path) -> None:
    path = tmp_path / "demo.jsonl"
    lines = [{"setup": {}}, *({"key": key, **row} for key, row in results().items())]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    picture.write(path)
    drawn = ET.fromstring(path.with_suffix(".svg").read_text())
    told = "".join(drawn.itertext())
    assert all(title in told for title in picture.PANELS.values())
    assert "● puzzle" in told


def test_a_cell_that_cannot_be_is_told_and_others_go_on(tmp_path: Path) -> None:
    ids = torch.randint(0, 256, (12, 24), generator=torch.Generator().manual_seed(0))
    _cases._write(tmp_path / "case", tiny_llama(), _cases._byte_tokenizer(), ids[:2], ids[2:4], ids[4:])
    plan = dataclasses.replace(
        QUICK, heal=1, batch=1, windows=8, drops=(1, 2), ways=("drop similarity",), geometries=(),
        budgets={ALL: (), STRUCTURE: ()}, baselines={ALL: (), STRUCTURE: ()}, processes=(1,),
    )  # fmt: skip
    path = tmp_path / "r.jsonl"
    run.work(tmp_path / "case", tmp_path / "cells", plan, path, only=("drop similarity",))
    rows = {line["key"]: line for line in read(path)[1:]}
    assert "one must stay" in rows["engine/structure/drop similarity/2"]["failed"]
    assert rows["engine/structure/drop similarity/1"]["losses"]
    timed = {k: row["engines"] for k, row in rows.items() if k.startswith("clock/")}
    assert len(timed) == len(cells.BATCHES)
    assert all(set(t) == {"engine/single/dense", "engine/structure/drop similarity/1"} for t in timed.values())
    assert "engine/single/control" not in rows, "only what was asked for is run"


def test_the_same_engines_are_timed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def measure(folders: list[Path], target: Any, *, processes: int, seconds: float) -> Any:
        asked.append(processes)
        raise BadModel("stop")

    monkeypatch.setattr(timing, "measure", measure)
    kept = Results(tmp_path / "r.jsonl", {})
    with pytest.raises(BadModel):
        timing.run(kept, {"engine/single/dense": tmp_path}, (2,))
    for batch in cells.BATCHES:
        these = timing.these(["engine/single/dense"])
        kept.add({"key": f"clock/{batch}/{these}", "batch": batch, "engines": {}})
    timing.run(kept, {"engine/single/dense": tmp_path}, (2,))
    assert asked == [2]


def test_the_mixed_build_differs_by_block_in_heads_neurons_and_codes(tmp_path: Path) -> None:
    geometry.MODELS["135 M"].save_pretrained(tmp_path)
    facts = loading.facts_of(str(tmp_path), "causal-lm")
    build = geometry.mixed(facts)
    assert [(b.kv_heads, b.ffn) for b in build.layout[:3]] == [(3, 1536), (1, 768), (0, 384)]
    assert {n.rpartition(".")[2] for n in build.plan} == {"gate_proj", "up_proj", "down_proj"}
    assert Planned() not in build.plan.values()
    found = geometry.parts(build, "llama", 576)
    assert len(found) == 30 + 20
    assert {c.precision for c in found} == {"fp32", "int4-g32"}


def test_an_engine_of_a_cell_is_made_healed_and_scored(tmp_path: Path) -> None:
    ids = torch.randint(0, 256, (12, 24), generator=torch.Generator().manual_seed(0))
    _cases._write(tmp_path / "case", tiny_llama(), _cases._byte_tokenizer(), ids[:2], ids[2:4], ids[4:])
    plan = dataclasses.replace(QUICK, heal=1, batch=1, windows=8)
    place = making.Place(
        case=tmp_path / "case", work=tmp_path / "cells", plan=plan, ids=_cases.ids_of(tmp_path / "case")
    )
    cell = Cell(STRUCTURE, "drop similarity", 1)
    found = making.made(cell, place)
    assert (place.folder(cell) / "engine" / "engine.json").exists()
    chosen = Artifact.load(place.folder(cell) / "chosen")
    assert len(tree.blocks(chosen.model)) == 1
    assert found["unhealed"] == pytest.approx(_score.window_losses(chosen.model, ids[2:4]), abs=1e-5)
    assert found["losses"] == pytest.approx(found["unhealed"], rel=0.1)
    assert found["losses"] != found["unhealed"]
    assert all(0 <= h <= 1 for h in found["hits"])
    assert {p.name for p in place.folder(cell).iterdir()} == {"chosen", "engine"}


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=256, tie_word_embeddings=True, pad_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def demo_case(folder: Path) -> Path:
    """Return a small case of the demo model."""
    case, ids = folder / "case", torch.randint(0, 4096, (12, 24), generator=torch.Generator().manual_seed(0))
    model, tokenizer = loading.open_source("demo", "causal-lm")
    _cases._write(case, model, tokenizer, ids[:2], ids[2:4], ids[4:])
    return case


def test_contexts_bring_targets_and_a_shared_cache(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    windows = torch.zeros(4, 8, dtype=torch.int64)
    plan = dataclasses.replace(QUICK, windows=2)
    place = making.Place(case=tmp_path, work=tmp_path, plan=plan, ids={"calibration": windows, "training": windows})
    found: Context = place.context(tmp_path / "a", QuietReport())
    assert found.cache == tmp_path / "cache"
    assert set(found.targets) == {"laptop"}
    assert len(found.data["training"].examples(tokenizer)) == 2
    assert found.data["training"].digest != found.data["calibration"].digest
