"""The report: whole and minimal summaries become self-contained pages, and the words fit the figures."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from compress import report
from compress.measure import Time
from compress.report import plots, words
from compress.report.html import Html, tag

VOID = {"meta"}
EVIL = "<script>alert('x')</script> & \"q\""


class Page(HTMLParser):
    """Reads a page, failing on unbalanced tags, and collects what a test asks for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(name)
        self.attributes += attributes
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words += data


def phase(ms: float, ratio: float, **more: Any) -> dict[str, Any]:
    times = {"ms": ms, "ratio": ratio, "ratio_low": ratio * 0.98, "ratio_high": ratio * 1.02}
    rest = {"cpu_ms": ms, "wall_ms": ms, "wall_p10_ms": ms, "spread": 0.02, "runs": 300, "flags": []}
    return {**times, **rest, **more}


def latency() -> dict[str, Any]:
    def engine(folder: str, ratio: float, mib: float) -> dict[str, Any]:
        return {
            "folder": folder, "prefill": phase(20 * ratio, ratio), "decode": phase(2 * ratio, ratio),
            "request": phase(148 * ratio, ratio), "tokens_per_second": 432 / ratio, "load_seconds": 0.1,
            "memory_mib": 3 * mib, "file_mib": mib,
        }  # fmt: skip

    return {
        "format": 1, "request": {"batch": 1, "prompt": 128, "generate": 64, "threads": 1, "device": "cpu"},
        "clock": "thread CPU time", "cache": "interleaved blocks", "processes": 3, "load_average": 2.4,
        "machine": {"cpu": "A CPU", "cores": 2, "system": "Linux"}, "versions": {"onnxruntime": "1.31.1"},
        "engines": [engine("engines/laptop-dense", 1.0, 26.0), engine("engines/laptop", 0.5, 13.0)],
        "flags": ["loaded: load average 2.4 on 2 cores"],
    }  # fmt: skip


def full() -> dict[str, Any]:
    kinds = {"self_attn.q_proj": [32, 32], "mlp.down_proj": [32, 64]}
    return {
        "format": 1,
        "name": f"demo {EVIL}",
        "created": "2026-01-05 12:30",
        "model": {"source": "demo", "task": "causal-lm", "parameters": 6_300_000, "family": "llama"},
        "steps": [
            {"index": 1, "use": "model", "name": "dense", "seconds": 1.0, "cached": True},
            {
                "index": 2, "use": "perp", "name": "retrain", "settings": {"rank": 4, "train": ["norms", EVIL]},
                "seconds": 94.2, "cached": False, "notes": [f"a note {EVIL}"],
                "measured": {"loss": [[i, 2 + math.exp(-i / 30), 1e-3] for i in range(200)], "peak_mib": [812.4]},
            },
        ],
        "layers": [
            {"name": f"model.layers.{b}.{k}", "shape": s, "sparsity": 0.5 + b / 4, "pattern": "2:4"}
            for b in range(2) for k, s in kinds.items()
        ],
        "quality": {
            "data": "python-docs",
            "dense": [{"name": "perplexity", "value": 14.213, "low": 13.6, "high": 14.9}],
            "compressed": [
                {"name": "perplexity", "value": 15.904, "low": 15.2, "high": 16.7},
                {"name": "agreement", "value": 0.8123, "low": 0.804, "high": 0.82},
            ],
            "delta": [{"name": "perplexity", "value": 1.691, "low": 1.52, "high": 1.87}],
            "engine": [{"name": "perplexity", "value": 15.904}],
        },
        "engines": [{
            "target": "laptop", "folder": "engines/laptop", "export": "onnx",
            "settings": {"runtime": "onnxruntime", "precision": "fp32"},
            "parity": {"shapes": 6, "logits": {"difference": 1.4e-6, "magnitude": 3.2}}, "latency": latency(),
        }],
        "versions": {"torch": "2.13.0"},
        "machine": {"cpu": "A CPU", "cores": 2},
        "simulated": ["nothing runs faster for it"],
        "measured": ["latency of both engines"],
        "warnings": [f"a warning {EVIL}"],
    }  # fmt: skip


def written(folder: Path, content: Any) -> tuple[str, Page]:
    report.write(folder, content)
    text = (folder / "report.html").read_text(encoding="utf-8")
    return text, Page(text)


def test_a_smaller_model_says_how_much_is_left(tmp_path: Path) -> None:
    content = full()
    content["model"]["parameters_left"] = 4_100_000
    content["layers"] = [layer | {"sparsity": 0.0} for layer in content["layers"]]
    text, _ = written(tmp_path, content)
    assert "4.10 million parameters where there were 6.30 million: 35% smaller." in text
    assert "No weight was pruned" not in text
    content["model"]["parameters_left"] = 6_300_000
    assert "No weight was pruned." in written(tmp_path, content)[0]


def test_a_whole_page(tmp_path: Path) -> None:
    content = full()
    text, page = written(tmp_path, content)
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == content
    for expected in (
        "62% of the weights in the model's blocks are zero",  # (0.5 + 0.75) / 2 = 62.5 %
        "Perplexity on held-out data went from 14.21 to 15.90.",
        "a request of 128 prompt tokens and 64 generated ones takes 74.0 ms; the dense engine takes 148 ms",
        "2.00 times as fast (1.96 to 2.04)",
        "+1.69, +11.9%: worse",
        "81.2%",
        "6.30 million parameters",
        "13.0 MiB",
        "50% smaller",
        "block 1", "q_proj", "down_proj", "75%",
        "1 min 34 s",
        "learning rate at most 0.001",
        "no kernel for such patterns",
        "loaded: load average 2.4 on 2 cores",
        "difference 1.4e-06",
    ):  # fmt: skip
        assert expected in page.words, expected
    assert "svg" in page.tags
    assert "prefers-color-scheme: dark" in text


def test_the_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    text, page = written(tmp_path, full())
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(page.tags)
    assert not {"src", "href", "srcset"} & {name for name, _ in page.attributes}
    assert not re.search(r"https?:|url\(|@import", text)


def test_everything_is_escaped(tmp_path: Path) -> None:
    text, page = written(tmp_path, full())
    assert "<script" not in text
    assert page.words.count(EVIL) >= 4  # name, setting, note, warning: shown as they are


@pytest.mark.parametrize("drop", [*sorted(full().keys() - {"format", "name"}), "all", "latency", "curves", "empty"])
def test_what_is_missing_is_left_out(drop: str, tmp_path: Path) -> None:
    content = full()
    if drop == "all":
        content = {"format": 1, "name": "only a name"}
    elif drop == "latency":
        content["engines"][0]["latency"] = None
    elif drop == "curves":
        content["steps"][1]["measured"] = {}
    elif drop == "empty":
        content = {k: type(v)() if isinstance(v, list | dict) else v for k, v in content.items()}
    else:
        del content[drop]
    _, page = written(tmp_path, content)
    assert content["name"] in page.words
    gone = {"layers": "Where the zeros are", "quality": "Perplexity", "engines": "MiB", "latency": "MiB",
            "steps": "How it was made", "curves": "Training", "versions": "Versions", "machine": "Cores"}  # fmt: skip
    assert gone.get(drop, "Quality of what") not in page.words
    assert "None" not in page.words
    assert "nan" not in page.words


def test_one_engine_alone_is_not_compared(tmp_path: Path) -> None:
    content = full()
    content["engines"][0]["latency"]["engines"] = content["engines"][0]["latency"]["engines"][:1]
    content["quality"] = {"dense": content["quality"]["dense"]}
    _, page = written(tmp_path, content)
    assert "148 ms" in page.words
    assert "14.21" in page.words
    assert "as fast" not in page.words
    assert "dense:" not in page.words


def test_layers_outside_blocks_become_bars(tmp_path: Path) -> None:
    content = full()
    content["layers"] = [{"name": "projection", "shape": [8, 8], "sparsity": 0.25}]
    _, page = written(tmp_path, content)
    assert "25.0%" in page.words
    assert "projection" in page.words


def test_what_is_integer(tmp_path: Path) -> None:
    content = full()
    layer = {"bits": 4, "stored_bits": 4, "group_size": 32, "zero": True, "offset": False, "activation": "none",
             "kernel": "MatMulNBits, level 4", "bytes": 2048, "bytes_before": 16384}  # fmt: skip
    whole = layer | {"bits": 8, "group_size": None, "zero": False, "kernel": "MatMulInteger"}
    names = [f"model.layers.{b}.mlp.up_proj" for b in range(2)]
    codes = {"layers": dict(zip(names, (layer, whole), strict=True)), "simulated": [f"codes of 3 bits {EVIL}"]}
    tried = {"level 4": {"kl": 0.002, "loss_rise": 0.001, "lost": 0.002}, "integer": {"lost": 0.3}}
    content["engines"][0] |= {
        "codes": codes | {"kernels": "level 4"},
        "choice": {"chosen": "level 4", "tolerance": 0.005, "windows": 16, "tried": tried},
        "kernel_times": {"level 4": {"prefill": 0.8, "request": 0.5}, "integer": {"prefill": 0.4, "request": 0.4}},
    }
    _, page = written(tmp_path, content)
    assert "2 linear layers hold codes of 4 bits and 8 bits: 4.00 KiB where floats take 32.0 KiB." in page.words
    for word in ("4 bits, 2.00 KiB", "8 bits, 2.00 KiB", "MatMulInteger (1 of 2 layers)", "codes of 3 bits <script>"):
        assert word in page.words
    assert "level 40.00201.25" in page.words  # loses, how fast in prefill
    assert "2.00taken" in page.words
    titles = [value for name, value in page.attributes if name == "title"]
    assert "groups of 32, with zeros, MatMulNBits, level 4, 2.00 KiB where floats take 16.0 KiB" in titles
    content["engines"][0] |= {"choice": {"chosen": "exact", "why": "no data"}, "kernel_times": {}}
    assert "Exact kernels: no data." in written(tmp_path, content)[1].words


def test_a_foreign_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="format 99"):
        report.write(tmp_path, {"format": 99, "name": "x"})
    assert not list(tmp_path.iterdir())


def test_tags_escape_text_and_attributes() -> None:
    assert tag("p", "a<b", Html("<i>c</i>"), None, title='"') == '<p title="&quot;">a&lt;b<i>c</i></p>'


@pytest.mark.parametrize(
    ("ratio", "low", "high", "tone", "start"),
    [
        (0.5, 0.48, 0.52, "good", "2.00 times as fast (1.92 to 2.08)"),
        (2.0, 1.9, 2.1, "bad", "takes 2.00 times as long (1.90 to 2.10)"),
        (0.98, 0.97, 0.99, "same", "as fast as dense"),  # within what the clock repeats
        (0.9, 0.7, 1.1, "same", "as fast as dense"),  # the interval holds 1
    ],
)
def test_words_for_speed(ratio: float, low: float, high: float, tone: str, start: str) -> None:
    change = words.sped(Time(ms=1, ratio=ratio, ratio_low=low, ratio_high=high))
    assert change.tone == tone
    assert change.text.startswith(start)


@pytest.mark.parametrize(
    ("name", "value", "low", "high", "tone"),
    [
        ("perplexity", 1.0, 0.5, 1.5, "bad"),
        ("perplexity", -1.0, -1.5, -0.5, "good"),
        ("perplexity", 1.0, -0.5, 2.5, "same"),
        ("accuracy", 0.01, 0.005, 0.015, "good"),
        ("accuracy", -0.01, -0.015, -0.005, "bad"),
    ],
)
def test_words_for_quality(name: str, value: float, low: float, high: float, tone: str) -> None:
    change = words.moved({"name": name, "value": value, "low": low, "high": high}, {"name": name, "value": 10.0})
    assert change.tone == tone


def test_sparsity_weighs_layers_by_size() -> None:
    layers = [{"shape": [1, 30], "sparsity": 0.0}, {"shape": [1, 10], "sparsity": 0.8}]
    assert words.sparsity(layers) == pytest.approx(0.2)
    assert words.sparsity([]) == 0


@pytest.mark.parametrize(("low", "high"), [(0, 1), (2.7, 3.51), (1, 200), (-3, 4), (5, 5), (1e-5, 3e-5), (0, 0)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    found = plots.ticks(low, high)
    assert 1 <= len(found) <= 6
    if high > low:
        assert len(found) >= 2
        assert low - 1e-9 <= found[0]
        assert found[-1] <= high + 1e-9
        step = (found[1] - found[0]) / 10 ** math.floor(math.log10(found[1] - found[0]) + 1e-6)
        assert min(abs(step - m) for m in (1, 2, 5)) < 1e-6


def test_curves_keep_their_shape_when_thinned() -> None:
    points = [[float(i), 2.0 * i] for i in range(1000)]
    thin = plots.thinned(points)
    assert len(thin) <= plots.POINTS
    assert all(y == pytest.approx(2 * x) for x, y in thin)
    assert sum(x for x, _ in thin) / len(thin) == pytest.approx(499.5, rel=0.01)
    assert plots.smooth([3.0] * 100) == pytest.approx([3.0] * 100)
    assert plots.smooth([0.0, 3.0, 0.0]) == pytest.approx([1.5, 1.0, 1.5])


def test_a_curve_without_numbers_is_left_out(tmp_path: Path) -> None:
    content = full()
    content["steps"][1]["measured"] = {"loss": [[0, math.nan], [1, math.nan]]}
    assert "Training" not in written(tmp_path, content)[1].words


@pytest.mark.parametrize(
    "points", [[[0, 1.0], [1, 1.0]], [[5, 2.0], [5, 3.0]], [[0, float("nan")], [1, 1.0], [2, 2.0]]]
)
def test_odd_curves_are_drawn(points: list[list[float]]) -> None:
    drawn = plots.curve(points, "step", "loss")
    assert "nan" not in drawn
    Page(drawn)
