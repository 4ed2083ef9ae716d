"""Choices for linears, blocks or parts of blocks, each judged with all else as it is.

A part is `<block>:attention` or `<block>:ffn`, and holds the linears that the family's table counts to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field
from transformers import PreTrainedModel

from compress import files, tree
from compress.artifact import Artifact
from compress.context import Context
from compress.contracts import Candidate, PassSettings
from passes import _sensitivity
from passes._sensitivity import Change

_WHERE = "where passes choose by what each choice costs in quality (average_bits, puzzle)"
Choose = Annotated[
    Literal["layer", "block", "part"],
    Field(
        description=f"{_WHERE}: whether each linear gets a choice of its own, each block, or each part of a block (its "
        "attention, its FFN)"
    ),
]
Windows = Annotated[int, Field(ge=1, description=f"{_WHERE}: calibration windows by which quality is judged")]


@dataclass(frozen=True, kw_only=True)
class Option:
    """One choice for linears that get the same.

    Attributes:
        choice: the settings that make it.
        change: what becomes of the linears.
        bytes: what they take then.
    """

    choice: Mapping[str, Any]
    change: Change
    bytes: float


def units(model: PreTrainedModel, names: Iterable[str], choose: Choose) -> dict[str, list[str]]:
    """Return the named linears by what gets one choice: each by itself, a block, or a part of a block."""
    qkvo, chosen, found = tree.family(model).qkvo, set(names), dict[str, list[str]]()
    for block in tree.blocks(model):
        for name in (n for n in tree.block_linears(model) if n in chosen and n.startswith(f"{block}.")):
            part = "attention" if name.removeprefix(f"{block}.") in qkvo else "ffn"
            key = {"layer": name, "block": block, "part": f"{block}:{part}"}[choose]
            found.setdefault(key, []).append(name)
    return found


def judged(
    artifact: Artifact, options: Mapping[str, Sequence[Option]], settings: PassSettings, windows: int, context: Context
) -> list[Candidate]:
    """Return for each unit it as it is, and then each of its options; scores of before a kill are not found again.

    Args:
        artifact: the model as it is, which stays so.
        options: one or more of each unit, by its name.
        settings: all that decides the options; with the artifact, which is the same for a folder.
        windows: of the calibration data, by which quality is judged.
        context: data, and the folder.

    Raises:
        BadModel: outputs are NaN or infinite.
    """
    digest = files.digest_of([type(settings).__name__, settings.model_dump(mode="json")])
    journal = context.folder / f"sensitivity-{digest[:12]}.json"
    changes = [option.change for row in options.values() for option in row]
    scores = _sensitivity.distances(artifact, changes, windows, context, journal)
    linears, found = tree.block_linears(artifact.model), list[Candidate]()
    for layer, row in options.items():
        floats = float(sum(linears[n].weight.nbytes for n in row[0].change.names))
        found.append(Candidate(layer=layer, choice={}, score=0.0, costs={"bytes": floats}))
        for option in row:
            score, costs = scores[option.change.key], {"bytes": float(option.bytes)}
            found.append(Candidate(layer=layer, choice=option.choice, score=score, costs=costs))
    return found
