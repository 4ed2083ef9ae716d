"""What `show` found, as lines to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.facts import said

_OF_ENGINES = ("task", "family", "parameters", "precision", "target", "versions")


def lines(about: Mapping[str, Any], indent: str = "", steps: int | None = None) -> list[str]:
    """Return what `show` found as lines to read.

    Args:
        about: what `show` returned.
        indent: put before every line.
        steps: how many of the last steps of an artifact's lineage to tell; all unless given.
    """
    head = f"{indent}{about['path']}: {about['kind']}, {about['size_mib']:.1f} MiB"
    inner = f"{indent}  "
    match about["kind"]:
        case "run":
            state = "finished" if about["finished"] else "not finished"
            parts = [lines(p, inner, steps=1) for p in (*about["steps"], *about["engines"])]
            return [f"{head}, {state}", *(line for part in parts for line in part)]
        case "artifact":
            lineage = about["lineage"][-steps:] if steps else about["lineage"]
            told = [line for step in lineage for line in _step_lines(step, inner)]
            return [head, *told, *_mask_lines(about, inner), *_grid_lines(about, inner), *_shape_lines(about, inner)]
        case "engine":
            uses = " -> ".join(step["use"] for step in about["lineage"])
            told = [
                *_key_lines(about, _OF_ENGINES, inner),
                *_kernel_lines(about, inner),
                *_measured_lines(about, inner),
            ]
            return [head, f"{inner}{uses} -> {about['exporter']}", *told]
        case _:
            told = _key_lines(about, ("model_type", "architectures", "dtype"), inner)
            return [head, *told, *_shape_lines(about, inner)]


def _step_lines(step: Mapping[str, Any], indent: str) -> list[str]:
    told = {k: v for k, v in step["settings"].items() if v not in (None, "", [])}
    settings = ", ".join(f"{k} = {_shown(v)}" for k, v in told.items())
    return [f"{indent}{step['use']}: {settings}", *(f"{indent}  {note}" for note in step["notes"])]


def _mask_lines(about: Mapping[str, Any], indent: str) -> list[str]:
    shares = about["sparsity"].values()
    if not shares:
        return []
    total = f"{about['sparsity_of_masked']:.2%} zeros under them"
    return [f"{indent}{len(shares)} masks: {total}, {min(shares):.2%} to {max(shares):.2%} per layer"]


def _grid_lines(about: Mapping[str, Any], indent: str) -> list[str]:
    """Return a line for each kind of codes."""
    kinds = Counter((g["bits"], g["group_size"] or 0, g.get("format", "int")) for g in about["grids"].values())
    return [
        f"{indent}{count} linears in codes of {said(bits, kind)}, {f'groups of {size}' if size else 'whole rows'}"
        for (bits, size, kind), count in sorted(kinds.items())
    ]


def _kernel_lines(about: Mapping[str, Any], indent: str) -> list[str]:
    """Return a line for each kernel that multiplies by codes of an engine, and one for all that is only simulated."""
    codes = about.get("codes", {"layers": {}, "simulated": []})
    kinds = Counter((said(g["bits"], g.get("format", "int")), g["kernel"]) for g in codes["layers"].values())
    told = [f"{indent}{count} linears in codes of {bits}: {kernel}" for (bits, kernel), count in kinds.items()]
    return [*told, *(f"{indent}only simulated, or stored wider: {what}" for what in codes["simulated"])]


def _shape_lines(about: Mapping[str, Any], indent: str) -> list[str]:
    """Return a line for each run of equal blocks, and one for the branches."""
    runs: list[tuple[int, int, str]] = []
    for index, block in enumerate(about.get("blocks", [])):
        what = f"{_attention(block)}, {_ffn(block)}"
        first = runs.pop()[0] if runs and runs[-1][2] == what else index
        runs.append((first, index, what))
    told = [f"{indent}block {a}: {t}" if a == b else f"{indent}blocks {a} to {b}: {t}" for a, b, t in runs]
    if ranks := about.get("branches", {}).values():
        told.append(f"{indent}{len(ranks)} branches, rank {min(ranks)} to {max(ranks)}")
    return told


def _attention(block: Mapping[str, Any]) -> str:
    if block["heads"]:
        return "{heads} query heads on {kv_heads} key heads of width {head_dim}".format(**block)
    return "a linear for attention" if block.get("linear_attention") else "no attention"


def _ffn(block: Mapping[str, Any]) -> str:
    return "a linear for neurons" if block.get("linear_ffn") else f"{block['ffn'] or 'no'} neurons"


def _measured_lines(about: Mapping[str, Any], indent: str) -> list[str]:
    measured = about.get("measured", {})
    found = []
    taken = about.get("choice", {}).get("chosen", "exact")
    of = "" if taken == "exact" or not measured.get("kernels") else f", before kernels of {taken!r} were taken"
    found += [f"{indent}not run: {why}" for why in measured.get("not_run", [])]
    for parity in measured.get("parity", []):
        by = f"{parity['logits']['difference']:.1e}"
        found.append(f"{indent}parity: logits differ from the model's by at most {by}{of}")
    for engine in measured.get("latency", {}).get("engines", []):
        if Path(engine["folder"]).name == Path(about["path"]).name:
            times = ", ".join(f"{n} {engine[n]['ms']:.3g} ms" for n in ("prefill", "decode", "request") if engine[n])
            found.append(f"{indent}latency: {times}, {engine['request']['ratio']:.3g} of the parent's request")
    return found


def _key_lines(about: Mapping[str, Any], keys: Sequence[str], indent: str) -> list[str]:
    return [f"{indent}{key}: {_shown(about[key])}" for key in keys if about.get(key) is not None]


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {v}" for k, v in value.items() if v is not None)
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
