"""Parts of a model as shapes: what a profile is keyed by, so that one serves every model of such a geometry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from compress.errors import BadSettings
from compress.families import family_of
from compress.grid import groups
from profiles import _precision

Count = Annotated[int, Field(ge=1)]
# Biases of query, key and value, of the output, and of the FFN's linears; tables of a norm; norms on queries and keys.
_STYLES: dict[str, tuple[bool, bool, bool, int, bool]] = {
    "llama": (False, False, False, 1, False),
    "mistral": (False, False, False, 1, False),
    "qwen2": (True, False, False, 1, False),
    "qwen3": (False, False, False, 1, True),
    "gpt2": (True, True, True, 2, False),
    "opt": (True, True, True, 2, False),
    "bert": (True, True, True, 2, False),
    "roberta": (True, True, True, 2, False),
}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str = Field(description="the architecture, as config.model_type spells it")
    hidden: Count = Field(description="width of the residual")

    @model_validator(mode="after")
    def _known(self) -> _Part:
        if self.family not in _STYLES:
            raise ValueError(f"family {self.family!r} is not known; known: {', '.join(_STYLES)}")
        return self

    @property
    def weights(self) -> int:
        """Elements of the linears' weights, which codes and masks are about."""
        raise TypeError("abstract")

    @property
    def others(self) -> int:
        """Elements of biases and norms."""
        raise TypeError("abstract")

    @property
    def parameters(self) -> int:
        """All elements."""
        return self.weights + self.others


class Attention(_Part):
    """Attention with the norm before it (or after it)."""

    part: Literal["attention"] = "attention"
    heads: Count = Field(description="query heads")
    kv_heads: Count = Field(description="key and value heads")
    head_dim: Count = Field(description="width of a head")

    @property
    def weights(self) -> int:
        """Elements of the linears' weights."""
        return 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)

    @property
    def others(self) -> int:
        """Elements of biases and norms."""
        qkv, output, _, tables, inner = _STYLES[self.family]
        rows = self.head_dim * (self.heads + 2 * self.kv_heads)
        return qkv * rows + (output + tables) * self.hidden + 2 * inner * self.head_dim

    @property
    def linears(self) -> tuple[tuple[int, int], ...]:
        """The linears, `(out, in)`."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return (queries, self.hidden), (keys, self.hidden), (keys, self.hidden), (self.hidden, queries)

    @property
    def text(self) -> str:
        """What `parse` reads."""
        return f"attention:{self.hidden},{self.heads},{self.kv_heads},{self.head_dim}"

    def __str__(self) -> str:
        return f"attention {self.hidden}: {self.heads} heads on {self.kv_heads} of {self.head_dim}"


class Ffn(_Part):
    """A feed-forward network with the norm before it (or after it)."""

    part: Literal["ffn"] = "ffn"
    neurons: Count = Field(description="width of the inner layer")

    @property
    def gated(self) -> bool:
        """Whether a second linear of the same shape is a factor."""
        return len(family_of(self.family).up) == 2

    @property
    def weights(self) -> int:
        """Elements of the linears' weights."""
        return (2 + self.gated) * self.hidden * self.neurons

    @property
    def others(self) -> int:
        """Elements of biases and norms."""
        _, _, biases, tables, _ = _STYLES[self.family]
        return biases * ((1 + self.gated) * self.neurons + self.hidden) + tables * self.hidden

    @property
    def linears(self) -> tuple[tuple[int, int], ...]:
        """The linears, `(out, in)`."""
        return (*((self.neurons, self.hidden),) * (1 + self.gated), (self.hidden, self.neurons))

    @property
    def text(self) -> str:
        """What `parse` reads."""
        return f"ffn:{self.hidden},{self.neurons}"

    def __str__(self) -> str:
        return f"ffn {self.hidden}: {self.neurons} neurons"


class Linear(_Part):
    """One linear in place of attention or an FFN, with the norm before it (or after it)."""

    part: Literal["linear"] = "linear"
    place: Literal["attention", "ffn"] = Field(description="what it stands for")

    @property
    def weights(self) -> int:
        """Elements of its weight."""
        return self.hidden**2

    @property
    def others(self) -> int:
        """Elements of bias and norm."""
        qkv, output, ffn, tables, _ = _STYLES[self.family]
        bias = (qkv or output) if self.place == "attention" else ffn  # where values have one, so has their stand-in
        return (bias + tables) * self.hidden

    @property
    def linears(self) -> tuple[tuple[int, int], ...]:
        """The linear, `(out, in)`."""
        return ((self.hidden, self.hidden),)

    @property
    def text(self) -> str:
        """What `parse` reads."""
        return f"linear:{self.place},{self.hidden}"

    def __str__(self) -> str:
        return f"linear {self.hidden}: in place of {self.place}"


class Base(_Part):
    """All that is outside the blocks: embedding, final norm, head, and what a call of the runtime costs."""

    part: Literal["base"] = "base"
    vocabulary: Count = Field(description="tokens")
    elements: Count = Field(description="of all parameters outside the blocks, one tensor counted once")

    @property
    def weights(self) -> int:
        """None: the base never is codes."""
        return 0

    @property
    def others(self) -> int:
        """All elements."""
        return self.elements

    @property
    def linears(self) -> tuple[tuple[int, int], ...]:
        """The head, `(out, in)`."""
        return ((self.vocabulary, self.hidden),) if family_of(self.family).head else ()

    def __str__(self) -> str:
        return f"base {self.hidden}: {self.vocabulary} tokens"


Part = Annotated[Attention | Ffn | Linear | Base, Field(discriminator="part")]
Block = Attention | Ffn | Linear


def _value(read: Callable[[], str]) -> str:
    """Return what is read, its fault turned into what pydantic collects."""
    try:
        return read()
    except BadSettings as error:
        raise ValueError(str(error)) from None


class Choice(BaseModel):
    """A part with the precision of its linears and the pattern of their zeros; `str` of it is a line to read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: Part
    precision: str = Field("fp32", description="of its linears: fp32, fp16, int4-g128, int8-dynamic, ...")
    pattern: str = Field("dense", description="of the zeros in its linears: dense, unstructured or N:M")

    @field_validator("precision")
    @classmethod
    def _precision(cls, name: str) -> str:
        return _value(lambda: _precision.parse(name).name)

    @field_validator("pattern")
    @classmethod
    def _pattern(cls, pattern: str) -> str:
        return _value(lambda: _precision.check_pattern(pattern))

    def bytes_with(self, floats: int) -> int:
        """Return what the tensors take in a graph whose floats have so many bytes; the base is never codes."""
        found = _precision.parse(self.precision)
        width = _precision.BYTES.get(self.precision, floats)
        part, grid = self.part, found.grid
        if isinstance(part, Base):
            return floats * part.parameters
        if grid is None:
            return width * part.parameters
        codes = sum(rows * -(-inputs * _precision.stored(grid.bits) // 8) for rows, inputs in part.linears)
        scales = sum(rows * groups(inputs, grid.group_size) for rows, inputs in part.linears)
        return codes + width * (scales + part.others)

    def __str__(self) -> str:
        return f"{self.part}, {self.precision}" + ("" if self.pattern == "dense" else f", {self.pattern}")
