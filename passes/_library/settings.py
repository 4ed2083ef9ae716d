"""What every pass that chooses among blocks takes: which variants of each part there are, and how they begin."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from compress.contracts import PassSettings

PARENT, LINEAR, NONE = "parent", "linear", "none"
_SHARE = re.compile(r"(\d+(?:\.\d+)?)%")


def share_of(text: str) -> float | None:
    """Return the share, above 0 and at most 1, that `75%` says; None where it says none."""
    found = _SHARE.fullmatch(text)
    share = float(found[1]) / 100 if found else 0.0
    return share if 0 < share <= 1 else None


def keys_of(text: str) -> float | int | None:
    """Return the share that `kv 50%` says, or the number that `kv 2` says; None where it says neither."""
    told = text.removeprefix("kv ")
    if told == text:
        return None
    return int(told) if re.fullmatch(r"[1-9]\d*", told) else share_of(told)


def _attention(text: str) -> str:
    text = " ".join(text.split())
    if text in (PARENT, LINEAR, NONE) or keys_of(text) is not None:
        return text
    raise _unknown("'parent', 'linear', 'none', 'kv 50%' (a share of the key heads) or 'kv 2' (so many)", text)


def _ffn(text: str) -> str:
    text = text.strip()
    if text in (PARENT, LINEAR, NONE) or share_of(text) is not None:
        return text
    raise _unknown("'parent', 'linear', 'none' or '75%' (a share of the neurons)", text)


def _unknown(known: str, text: str) -> PydanticCustomError:
    return PydanticCustomError("variant", "must be {known}, got '{got}'", {"known": known, "got": text})


class SpaceSettings(PassSettings):
    """The search space: what may stand in place of each block's attention and FFN; the parent's own always may."""

    attention: tuple[Annotated[str, AfterValidator(_attention)], ...] = Field(
        (PARENT, "kv 50%", "kv 25%", LINEAR, NONE),
        description="variants of attention: 'parent', 'kv 50%' or 'kv 2' (fewer key heads, all query heads), 'linear' "
        "(each token by itself through one linear), 'none'; only the parts all of whose linears are chosen have any",
    )
    ffn: tuple[Annotated[str, AfterValidator(_ffn)], ...] = Field(
        (PARENT, "75%", "50%", "25%", LINEAR, NONE),
        description="variants of the FFN: 'parent', '75%' (a share of the neurons), 'linear' (one linear), 'none'",
    )
    kv: Literal["pool", "select"] = Field(
        "select",
        description="fewer key heads: those that add most, the others' queries idle at first, or means of neighbours, "
        "which lose more before training and about as much after it",
    )
    multiple: int = Field(
        64,
        ge=1,
        description="a share of neurons is rounded to a multiple of this, which kernels like; 1 = any",
    )
    ranking: Literal["oneshot", "iterative"] = Field(
        "iterative",
        description="what neurons are worth: what each adds alone, or together with those gone before it, which costs "
        "sixteen walks through a block in place of one",
    )
