"""The PERP benchmark's own parts: its results survive kills, its formula is the pass's count, its shares are right."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from benchmarks._ledger import Results, Row, conclude, read
from benchmarks.perp import cells, report
from benchmarks.perp.cells import Cell
from benchmarks.perp.measure import formula
from compress import tree
from compress.artifact import Artifact
from compress.errors import UserFault
from compress.facts import MaskFact
from passes.perp.settings import PerpSettings
from passes.perp.subsets import choose


def test_a_torn_last_line_is_lost_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    Results(path, {"steps": 2}).add({"key": "a", "tuning": 1.0})
    with path.open("a") as file:
        file.write('{"key":"torn')
    results = Results(path, {"steps": 2})
    assert results.rows == {"a": {"key": "a", "tuning": 1.0}}
    results.add({"key": "b"})
    assert [line.get("key") for line in read(path)] == [None, "a", "b"]


def test_a_file_of_another_setup_is_refused(tmp_path: Path) -> None:
    Results(tmp_path / "run.jsonl", {"steps": 2})
    with pytest.raises(UserFault, match="steps 2 -> 3"):
        Results(tmp_path / "run.jsonl", {"steps": 3})


def test_a_run_ends_with_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.jsonl"

    def late() -> None:
        Results(path, {"steps": 2}).add({"key": "a"})
        raise TimeoutError

    def other() -> None:
        Results(path, {"steps": 3})

    def page(setup: Row, rows: Mapping[str, Row]) -> str:
        return f"{setup['steps']} steps: {', '.join(rows)}"

    with pytest.raises(SystemExit, match=r"error: .*run\.jsonl: no results yet"):
        conclude(path, page, None)
    for work, told in ((late, True), (None, False)):
        conclude(path, page, work)
        assert path.with_suffix(".md").read_text() == "2 steps: a"
        assert ("the same command goes on" in capsys.readouterr().out) == told
    with pytest.raises(SystemExit, match=r"error: .*another setup"):
        conclude(path, page, other)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_closed_formula_is_what_the_pass_counts(kind: str, tiny: Callable[..., Artifact]) -> None:
    model = tiny(kind).model
    facts = tree.facts(model, "causal-lm")
    facts = facts.after(masks={n: MaskFact("unstructured", 0.5) for n in facts.shapes})
    seen = set()
    for cell in cells.full(facts):
        if not cell.trains or cell.form == "full":
            continue
        seen.add(cell.form)
        train = (cell.form, *(("norms",) if cell.norms else ()))
        mode = {"mode": "reconstruct", "window": cell.window} if cell.window else {}
        settings = PerpSettings(
            train=train, rank=cell.rank or 1, drop_mask=cell.form == "lora", **mode
        )  # fmt: skip
        counted = choose(settings, facts).trainable(facts, settings.rank)
        assert formula(model.config, cell, facts.parameters) == counted, cell.title
    assert {"norms", "mask_lora", "scale_lora", "lora_prune", "lora"} <= seen
    assert ("biases" in seen) == (kind == "gpt2")


def test_regained_share_is_of_full_retraining_at_the_tuned_rates() -> None:
    rows = {}

    def add(cell: Cell, losses: list[float], tuning: float) -> None:
        fields = {f: getattr(cell, f) for f in Cell.__dataclass_fields__}
        rows[cell.key] = {"key": cell.key, **fields, "losses": losses, "tuning": tuning, "seconds": 1}

    ours = Cell(pattern="60%", form="mask_lora", rank=4, norms=True)
    add(Cell(pattern="60%"), [4.0, 6.0], 5.0)
    add(Cell(pattern="60%", form="full", lr=1e-3), [2.0, 4.0], 3.0)
    add(ours.at(1e-3), [2.0, 4.5], 3.2)
    add(ours.at(3e-3), [1.0, 1.0], 9.0)  # better on the evaluation text, but not chosen: that would be peeking
    found = report.Table({}, rows).regained(ours)
    assert found is not None
    assert found[0] == pytest.approx(87.5)
    assert found[1] == "75.0 … 100.0"
