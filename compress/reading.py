"""What linears read that are meant to read codes: the model as kernels of 8 bits compute it, in torch.

A static input becomes the code nearest to `x / input_scale`, clamped, which stands for the code times `input_scale`;
codes are of the weight's format.  Whatever says what an engine with such inputs computes, or what they cost, asks here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

from torch import Tensor, nn

from compress.branched import Branched
from compress.facts import Format
from compress.grid import DTYPES, FP8_MOST, Grid, bounds

Change = Callable[[Tensor], Tensor]


def rounded(x: Tensor, scale: Tensor, format_: Format = "int") -> Tensor:
    """Return what static inputs stand for, in the type of x: `scale * clamp(round(x / scale))`, half to even.

    Args:
        x: floats of any shape.
        scale: float32 scalar, above 0.
        format_: of the codes: integers from -128 to 127, or floats (E4M3) to 448.
    """
    codes = x.float() / scale
    if format_ == "fp8":
        codes = codes.clamp(-FP8_MOST, FP8_MOST).to(DTYPES["fp8"]).float()
    else:
        codes = codes.round().clamp(*bounds(8))
    return (codes * scale).to(x)


def static(grids: Mapping[str, Grid]) -> dict[str, Change]:
    """Return by linear what rounds its inputs, of all whose inputs are static."""
    steps = {n: (g.input_scale, g.fact.format) for n, g in grids.items()}
    return {n: partial(rounded, scale=s, format_=f) for n, (s, f) in steps.items() if s is not None}


@contextmanager
def reading(model: nn.Module, changes: Mapping[str, Change]) -> Iterator[None]:
    """While this lasts, the weights of some linears of a model multiply what their inputs are changed to."""
    with ExitStack() as hooks:
        for name, change in changes.items():
            module = model.get_submodule(name)
            if isinstance(module, Branched):  # its branch reads what it always does
                hooks.enter_context(module.register_forward_hook(partial(_mended, change)))
            else:
                hooks.enter_context(module.register_forward_pre_hook(partial(_changed, change)))
        yield


def _changed(change: Change, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (change(args[0]), *args[1:])


def _mended(change: Change, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output + nn.functional.linear(change(args[0]) - args[0], module.get_parameter("weight"))
