"""Open a model: a folder, one of a Python package, a hub id or the demo model; safetensors only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from compress import blocks, health, packaged, skeleton, tree
from compress.blocks import disk
from compress.errors import BadModel
from compress.facts import Facts, Task
from compress.families import family_of
from compress.store import Store

DEMO = Path(__file__).parent / "demo"

CLASSES: dict[Task, Any] = {
    "causal-lm": AutoModelForCausalLM,
    "classification": AutoModelForSequenceClassification,
    "regression": AutoModelForSequenceClassification,
    "embedding": AutoModel,
}


def open_source(
    source: str,
    task: Task,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    dtype: torch.dtype = torch.float32,
    labels: int | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return model and tokenizer of a source: all that `locate` finds.

    Raises:
        BadModel: missing, truncated, pickled, of another vocabulary or of an unknown architecture.
    """
    return open_folder(locate(source, revision), task, trust_remote_code=trust_remote_code, dtype=dtype, labels=labels)


def locate(source: str, revision: str | None = None) -> Path:
    """Return the folder of a folder, `package:name/folder`, `demo` or a hub id (safetensors and text are fetched).

    Raises:
        BadModel: no such folder or package, and no such model on a hub that can be reached.
    """
    if source == "demo":
        return DEMO
    if source.startswith(packaged.PREFIX):
        return packaged.folder_of(source)
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1:
        raise BadModel(f"{source}: no such folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        wanted = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py"]
        return Path(snapshot_download(source, revision=revision, allow_patterns=wanted))
    except HFValidationError:
        raise BadModel(f"{source!r}: neither a folder nor a hub id (owner/name), nor 'demo'") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = _first_line(error)
        raise BadModel(
            f"{source!r}: no such folder, and the hub did not give it ({reason}); "
            "give a folder, or check the name and the network"
        ) from None


def open_folder(
    folder: Path,
    task: Task,
    *,
    trust_remote_code: bool = False,
    dtype: torch.dtype | None = None,
    labels: int | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return model (linears `[out, in]`, evaluation mode) and tokenizer of a Hugging Face folder.

    A task head that the folder lacks starts at random, with a warning; nothing else may be missing.
    """
    config = _config_for(folder, task, trust_remote_code, labels)
    health.check_weights(folder)
    shapes = disk.read(folder)
    with quiet():
        tokenizer = read_tokenizer(folder, trust_remote_code)
        plain: Any = type(_hollow(task, config, trust_remote_code)) if shapes else CLASSES[task]
        maker: Any = disk.shaped(plain, shapes.layout) if shapes else plain
        try:
            model, report = maker.from_pretrained(
                folder,
                config=config,
                dtype=dtype or "auto",
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                ignore_mismatched_sizes=True,  # so that `report` names them; they are refused below
                output_loading_info=True,
            )
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise BadModel(f"{folder}: cannot be loaded ({_first_line(error)})") from error
    health.check_complete(folder, model, report)
    health.check_tokenizer(folder, model, tokenizer)
    tree.linearise_(model)
    if shapes:
        model.__class__ = plain
        disk.load_branches_(model, folder, shapes.ranks)
    return model.eval(), tokenizer


def open_stored(
    folder: Path,
    task: Task,
    *,
    changes: Path | None = None,
    trust_remote_code: bool = False,
    dtype: torch.dtype | None = None,
    labels: int | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Store]:
    """Return what `open_folder` does, but the blocks' parameters on `meta`, and the store that holds them.

    Args:
        folder: a Hugging Face folder; it must stay as it is as long as the store is used.
        task: what the model is for.
        changes: the store's folder for changed blocks; one that vanishes with the store unless given.
        trust_remote_code: whether Python files beside the weights may run.
        dtype: precision in which blocks are opened; that of the configuration unless given.
        labels: classes, when a classification head is to be made anew.
    """
    config = _config_for(folder, task, trust_remote_code, labels)
    health.check_weights(folder)
    shapes = disk.read(folder)
    with quiet():
        tokenizer = read_tokenizer(folder, trust_remote_code)
        dtype = dtype or skeleton.dtype_of(config, folder)
        make = partial(CLASSES[task].from_config, config, dtype=dtype, trust_remote_code=trust_remote_code)
        model = skeleton.build(make)
        if shapes:
            blocks.shape_(model, shapes.layout)
        found = skeleton.find(folder, model)
        health.check_complete(folder, model, found.report)
        skeleton.fill_(model, found.places, folder)
    health.check_tokenizer(folder, model, tokenizer)
    transposed = [n for n, m in model.named_modules() if isinstance(m, Conv1D)]
    tree.linearise_(model)
    places = found.places | (disk.find_branches_(model, folder, shapes.ranks) if shapes else {})
    model.eval()  # type: ignore[no-untyped-call]
    return model, tokenizer, Store(places, frozenset(f"{n}.weight" for n in transposed), changes)


def facts_of(
    source: str,
    task: Task,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    labels: int | None = None,
) -> Facts:
    """Return what is known of a source from its configuration, without reading weights."""
    folder = locate(source, revision)
    config, shapes = _config_for(folder, task, trust_remote_code, labels), disk.read(folder)
    with quiet():
        model = _hollow(task, config, trust_remote_code)
    model.tie_weights()
    tree.linearise_(model)
    if shapes:
        blocks.shape_(model, shapes.layout)
        disk.hollow_branches_(model, shapes.ranks)
    return tree.facts(model, task)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' own bars and reports off the terminal while the block runs."""
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def read_config(folder: Path, trust_remote_code: bool = False) -> Any:
    """Return the folder's configuration.

    Raises:
        BadModel: there is none, or it needs remote code that was not allowed.
    """
    if not (folder / "config.json").is_file():
        raise BadModel(f"{folder}: no config.json in it, so it is no Hugging Face model folder")
    shapes = disk.read(folder)
    try:
        if shapes:
            return AutoConfig.for_model(shapes.parent_type, **shapes.parent)
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise BadModel(f"{folder}/config.json: {_first_line(error)}") from error


def _hollow(task: Task, config: Any, trust_remote_code: bool) -> PreTrainedModel:
    """Return the model that a configuration describes, on `meta`."""
    with torch.device("meta"):
        model: PreTrainedModel = CLASSES[task].from_config(config, trust_remote_code=trust_remote_code)
    return model


def _config_for(folder: Path, task: Task, trust_remote_code: bool, labels: int | None) -> Any:
    config = read_config(folder, trust_remote_code)
    if task == "causal-lm" and not family_of(config.model_type).decoder:
        raise BadModel(f"{folder}: {config.model_type} is an encoder, so its task cannot be 'causal-lm'")
    health.check_floats(folder, config)
    if task == "regression" or labels:
        config.num_labels = 1 if task == "regression" else labels
    return config


def read_tokenizer(folder: Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Return the folder's tokenizer, or raise `BadModel` when it cannot be loaded."""
    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise BadModel(f"{folder}: its tokenizer cannot be loaded ({_first_line(error)})") from error
    return found


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
