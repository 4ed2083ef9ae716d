"""Weights that stay on disk: read block by block, changed blocks kept in a folder of their own.

What a model stores is named and laid out in the files as its architecture does; here it is by the model's own names,
linears `[out, in]`.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compress import files, tensors, tree
from compress.blocks import disk
from compress.skeleton import INDEX, SINGLE
from compress.tensors import Layout, Place

_MMAP_THRESHOLD = -3  # as malloc.h has it


class Store:
    """Where the tensors of a model's blocks lie.

    Args:
        places: by the model's names, where each tensor lies.
        transposed: the names of those that lie `[in, out]` there.
        folder: where changed blocks go, which is emptied first: what an interrupted pass changed is no input.  A
            folder that vanishes with the store unless given.
    """

    def __init__(self, places: Mapping[str, Place], transposed: frozenset[str], folder: Path | None = None) -> None:
        self._places, self._transposed = dict(places), transposed
        self.folder = folder or Path(tempfile.mkdtemp(prefix="compress-"))
        if folder is None:
            weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """Return a tensor, read anew; a linear's weight is `[out, in]`."""
        found = self._places[name].read().to(dtype)
        return found.t().contiguous() if name in self._transposed else found

    @contextmanager
    def opened(self, name: str, block: nn.Module, device: torch.device, *, keep: bool = True) -> Iterator[nn.Module]:
        """Yield the block with its weights on a device; when it ends well, what changed is kept, if wanted.

        A block that is open already is yielded as it is.
        """
        hollow = dict(block.named_parameters())
        if not any(p.is_meta for p in hollow.values()):
            yield block
            return
        try:
            with torch.inference_mode(mode=False):
                for inner, like in hollow.items():
                    weight = self.read(f"{name}.{inner}", like.dtype).to(device)
                    _put_(block, inner, nn.Parameter(weight, requires_grad=like.requires_grad))
            yield block
            if keep:
                self._keep(name, block)
        finally:
            for inner, now in dict(block.named_parameters()).items():
                like = hollow.get(inner, now)
                same = like.is_meta and like.shape == now.shape  # else the block was given another shape
                empty = like if same else nn.Parameter(torch.empty_like(now, device="meta"), now.requires_grad)
                _put_(block, inner, empty)

    @contextmanager
    def called(self, blocks: Mapping[str, nn.Module], device: torch.device) -> Iterator[None]:
        """Let the blocks be called inside: each is read as it is called, and left again without a look at changes."""
        with ExitStack() as stack:
            for name, block in blocks.items():
                opened = stack.enter_context(ExitStack())
                enter = partial(self._enter, opened, name, device)
                stack.callback(block.register_forward_pre_hook(enter).remove)
                leave = block.register_forward_hook(partial(_leave, opened), always_call=True)
                stack.callback(leave.remove)
            yield

    def _enter(self, opened: ExitStack, name: str, device: torch.device, block: nn.Module, _: object) -> None:
        opened.enter_context(self.opened(name, block, device, keep=False))

    def write(self, path: Path, layouts: Mapping[str, Layout]) -> None:
        """Lay a file at `path` with these tensors, as the architecture lays them out and in these dtypes.

        A file that holds just that is linked, so that it takes no room twice.
        """
        found = {self._places[n].path for n in layouts}
        source = next(iter(found))
        if len(found) == 1 and {n: p.layout for n, p in tensors.places(source).items()} == dict(layouts):
            _link(source, path)
        else:
            tensors.write(path, layouts, lambda name: self._places[name].read().to(layouts[name].dtype))

    def layout(self, name: str, like: Tensor) -> Layout:
        """Return how a tensor of the model lies in files."""
        return Layout(like.dtype, tuple(reversed(like.shape) if name in self._transposed else like.shape))

    def _keep(self, name: str, block: nn.Module) -> None:
        """Keep a block of which a bit changed."""
        now = {f"{name}.{inner}": parameter.detach() for inner, parameter in block.named_parameters()}
        if all(n in self._places and tensors.same_bits(self.read(n, t.dtype), t) for n, t in now.items()):
            return
        path = self.folder / f"{name}.safetensors"
        turned = self._transposed
        tensors.write(
            path, {n: self.layout(n, t) for n, t in now.items()}, lambda n: now[n].t() if n in turned else now[n]
        )
        self._places |= tensors.places(path)


def give_back_() -> None:
    """Let the C library give freed tensors back to the system at once, for the rest of the process.

    glibc else keeps what was freed in pieces of up to 32 MiB, into which torch's aligned requests of the same size do
    not fit again: memory grows with the depth of the model.  Other libraries have no such setting, nor the need.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_MMAP_THRESHOLD, 2**20)


def save(model: PreTrainedModel, store: Store, folder: Path) -> None:
    """Write a model whose blocks are stored as a sharded Hugging Face folder, a block at a time."""
    beside = disk.branch_tensors(model)  # which have a file of their own
    parameters = {n: p for n, p in model.named_parameters() if n not in beside}
    inside = {n: next((b for b in tree.blocks(model) if n.startswith(f"{b}.")), "") for n in parameters}
    blocks = list(filter(None, dict.fromkeys(inside.values())))  # those that hold anything
    count = len(blocks) + 1
    rest = {n: t for n, t in model.state_dict().items() if not inside.get(n) and n not in beside}
    model.save_pretrained(folder, state_dict=rest, max_shard_size="100TB")  # drops the second name of tied tensors
    (folder / SINGLE).rename(folder / _shard(1, count))
    where = dict.fromkeys(tensors.places(folder / _shard(1, count)), _shard(1, count))
    for index, block in enumerate(blocks, start=2):
        layouts = {n: store.layout(n, parameters[n]) for n, b in inside.items() if b == block}
        store.write(folder / _shard(index, count), layouts)
        where |= dict.fromkeys(layouts, _shard(index, count))
    sizes = [p.layout.size for path in folder.glob("model-*.safetensors") for p in tensors.places(path).values()]
    about = {"total_parameters": sum(p.numel() for p in parameters.values()), "total_size": sum(sizes)}
    files.write_json(folder / INDEX, {"metadata": about, "weight_map": dict(sorted(where.items()))})


def _shard(index: int, count: int) -> str:
    return f"model-{index:05d}-of-{count:05d}.safetensors"


def _put_(block: nn.Module, name: str, parameter: nn.Parameter) -> None:
    tree.replace_(block, name, parameter)  # type: ignore[arg-type]


def _leave(opened: ExitStack, *_: object) -> None:
    opened.close()


def _link(source: Path, path: Path) -> None:
    try:
        os.link(source.resolve(), path)  # else a link to a link, as hubs' caches have them
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, path)
