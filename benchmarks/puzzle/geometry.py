"""Speed alone in the shapes of real models: what a profile promises of a mixed build, and what the clock then shows.

Weights are random, so that nothing is said of quality.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

import profiles
from benchmarks._cases import _byte_tokenizer
from benchmarks._ledger import Results, Row
from benchmarks._memory import HALF_BILLION
from benchmarks.puzzle.cells import TARGET
from benchmarks.puzzle.timing import times
from compress import loading
from compress.context import QuietReport
from compress.facts import BlockConfig, Facts, GridFact, Planned
from compress.families import families
from compress.measure import measure
from compress.profiling import Build, Wanted, profiler
from profiles import Choice, Ffn

MODELS = {
    "135 M": LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=2048, tie_word_embeddings=True,
    ),
    "0.5 B": HALF_BILLION,
}  # fmt: skip
CODES = "int4-g32"
SECONDS = 1.0  # of the clock, for each engine in each phase and process
NEEDED = 6  # whole models that tell the profile what sums of parts miss


def run(results: Results, work: Path, names: tuple[str, ...]) -> None:
    """Measure the geometries that are not measured yet; a killed profile goes on."""
    for name in names:
        if (key := f"geometry/{name}") not in results.rows:
            results.add({"key": key, "name": name, **measured(name, work / name.replace(" ", "-"))})
            print(f"{key}: done", flush=True)


def mixed(facts: Facts) -> Build:
    """Return a build whose neighbouring blocks differ in heads, neurons and codes: every third block is the parent's.

    Of the others, one has one key head and half the neurons, the next no attention and a quarter; FFNs have codes.
    """
    whole = facts.layout[0]
    layout: list[BlockConfig] = []
    for index, block in enumerate(facts.layout):
        ffn = {0: whole.ffn, 1: whole.ffn // 2, 2: whole.ffn // 4}[index % 3]
        heads = {0: (whole.heads, whole.kv_heads), 1: (whole.heads, 1), 2: (0, 0)}[index % 3]
        layout.append(dataclasses.replace(block, heads=heads[0], kv_heads=heads[1], ffn=ffn))
    table, grid = families()[facts.family], GridFact(bits=4, group_size=32)
    ends = tuple(f".{name}" for name in (*table.up, table.down))
    return Build(layout=tuple(layout), plan={n: Planned(grid=grid) for n in facts.shapes if n.endswith(ends)})


def parts(build: Build, model_type: str, hidden: int) -> list[Choice]:
    """Return the parts of a mixed build, as profiles know them."""
    every = (part for block in build.layout for part in profiles.parts_of(block, model_type, hidden))
    return [Choice(part=part, precision=CODES if isinstance(part, Ffn) else TARGET.precision) for part in every]


def measured(name: str, work: Path) -> Row:
    """Return what was promised and what was measured of a build, prefill and decode."""
    model = work / "model"
    if not model.exists():
        MODELS[name].save_pretrained(model)
        _byte_tokenizer().save_pretrained(model)
    facts, given = loading.facts_of(str(model), "causal-lm"), MODELS[name].model_type
    build, profile = mixed(facts), work / "profile.json"
    wanted = Wanted(
        model=str(model), target=TARGET, layouts=(build.layout,), precisions=(TARGET.precision, CODES),
        models=NEEDED,
    )  # fmt: skip
    profiler().take(wanted, profile, QuietReport())
    costs, base, hidden = profiles.open(profile, TARGET), profiles.base_of(facts, given), profiles.hidden_of(facts)
    promised = costs.predict(parts(build, given, hidden), base, TARGET)
    before = costs.predict(profiles.layout_choices(facts.layout, given, hidden), base, TARGET)
    phases = ("prefill_ms", "decode_ms")
    found: dict[str, Any] = {p: [promised[p].ms, promised[p].low, promised[p].high, before[p].ms] for p in phases}
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        engines = [
            profiler().engine(str(model), "causal-lm", each, TARGET, Path(scratch) / folder)
            for folder, each in (("dense", Build(layout=facts.layout)), ("mixed", build))
        ]
        clock = measure(engines, TARGET, seconds=SECONDS)
    dense, child = (times(e) for e in clock.engines)
    return {"promised": found, "dense": dense, "mixed": child, "flags": clock.flags, "load": clock.load_average}
