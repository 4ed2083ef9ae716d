"""Open a model: a folder, a hub id or the demo model; safetensors only."""

from __future__ import annotations

import json
import struct
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

from compress import tree
from compress.contracts import Facts, Task
from compress.errors import BadModel
from compress.families import family_of

DEMO = Path(__file__).parent / "demo"

_CLASSES: dict[Task, Any] = {
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
    """Return model and tokenizer of a folder, the demo model (`demo`) or a hub id.

    Raises:
        BadModel: missing, truncated, pickled, of another vocabulary or of an unknown architecture.
    """
    return open_folder(locate(source, revision), task, trust_remote_code=trust_remote_code, dtype=dtype, labels=labels)


def locate(source: str, revision: str | None = None) -> Path:
    """Return the folder of a source; a hub id is fetched (safetensors and text files only).

    Raises:
        BadModel: no such folder and no such model on a hub that can be reached.
    """
    if source == "demo":
        return DEMO
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
        reason = str(error).partition("\n")[0]
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
    """Return model (linears `[out, in]`, evaluation mode) and tokenizer of a Hugging Face folder."""
    config = read_config(folder, trust_remote_code)
    family_of(config.model_type)
    _check_weights(folder)
    extra = {"num_labels": 1 if task == "regression" else labels} if task == "regression" or labels else {}
    try:
        model = _CLASSES[task].from_pretrained(
            folder, dtype=dtype or "auto", use_safetensors=True, trust_remote_code=trust_remote_code, **extra
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise BadModel(f"{folder}: cannot be loaded ({str(error).partition(chr(10))[0]})") from error
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise BadModel(
            f"{folder}: the tokenizer has {len(tokenizer)} entries but the model embeds {rows}; "
            "they do not belong together"
        )
    tree.linearise_(model)
    return model.eval(), tokenizer


def facts_of(source: str, task: Task, *, revision: str | None = None, trust_remote_code: bool = False) -> Facts:
    """Return what is known of a source from its configuration, without reading weights."""
    config = read_config(locate(source, revision), trust_remote_code)
    family_of(config.model_type)
    with torch.device("meta"):
        model = _CLASSES[task].from_config(config, trust_remote_code=trust_remote_code)
    model.tie_weights()
    tree.linearise_(model)
    return tree.facts(model, task)


def read_config(folder: Path, trust_remote_code: bool = False) -> Any:
    """Return the folder's configuration.

    Raises:
        BadModel: there is none, or it needs remote code that was not allowed.
    """
    if not (folder / "config.json").is_file():
        raise BadModel(f"{folder}: no config.json in it, so it is no Hugging Face model folder")
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise BadModel(f"{folder}/config.json: {str(error).partition(chr(10))[0]}") from error


def _check_weights(folder: Path) -> None:
    """Refuse pickles and truncated safetensors before any library reads them."""
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickled = sorted(p.name for p in folder.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".ckpt", ".pkl"})
        if pickled:
            raise BadModel(
                f"{folder}: holds only {pickled[0]}, a pickle, which can run any code when loaded and is refused; "
                "convert it to safetensors where it comes from"
            )
        raise BadModel(f"{folder}: no *.safetensors in it")
    for path in weights:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
            if length > size - 8:
                raise BadModel(f"{path}: truncated or no safetensors file ({size} bytes); fetch it again")
            header = json.loads(file.read(length))
        end = 8 + length + max((v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"), default=0)
        if end != size:
            raise BadModel(f"{path}: truncated: {size} bytes where its header promises {end}; fetch it again")
