"""Models that fit in the head: one tiny random model per family, with a tokenizer trained on the spot."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from compress import blocks, registry, tree
from compress.artifact import Artifact
from compress.context import Context, QuietReport
from compress.contracts import Exporter, Target
from compress.data import DataSettings, Source
from compress.engines import Engines
from compress.facts import GridFact
from compress.grid import DTYPES, Grid, bounds, groups, spread

torch.set_num_threads(1)

VOCABULARY = 384
TEXT = "the quick brown fox jumps over the lazy dog; a scale moves from here to there, 1 2 3 5 8 13 21. "
CAUSAL = ("llama", "mistral", "qwen2", "qwen3", "llama-tied", "opt", "gpt2")
ENCODERS = ("bert", "roberta")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Let no pipeline's threads be left to the tests after it."""
    yield
    torch.set_num_threads(1)


def _config(kind: str) -> Any:
    llama: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
        "bos_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    bert: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 130, "pad_token_id": 1,
    }  # fmt: skip
    match kind:
        case "llama":
            return tf.LlamaConfig(**llama, tie_word_embeddings=False)
        case "llama-tied":
            return tf.LlamaConfig(**llama, head_dim=16, tie_word_embeddings=True)
        case "mistral":
            return tf.MistralConfig(**llama)
        case "qwen2":
            return tf.Qwen2Config(**llama, tie_word_embeddings=True)
        case "qwen3":
            return tf.Qwen3Config(**llama, head_dim=16, tie_word_embeddings=True)
        case "opt":
            return tf.OPTConfig(
                vocab_size=VOCABULARY, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
                max_position_embeddings=128, word_embed_proj_dim=32, bos_token_id=0, eos_token_id=1, pad_token_id=1,
            )  # fmt: skip
        case "gpt2":
            return tf.GPT2Config(
                vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=0, eos_token_id=1
            )
        case "bert":
            return tf.BertConfig(**bert)
        case "roberta":
            return tf.RobertaConfig(**bert)
    raise KeyError(kind)


def lively(model: tf.PreTrainedModel) -> tf.PreTrainedModel:
    """Give biases, norms and linears values that tell, so that whoever forgets or misplaces some is found out."""
    for parameter in (*tree.biases(model).values(), *tree.norms(model).values()):
        torch.nn.init.normal_(parameter, mean=0.5)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data *= 8
    return model


def loud(artifact: Artifact, times: int = 20, inside: str = "") -> Artifact:
    """Return the artifact with norms (those whose names hold a part) that make one channel in sixteen much larger."""
    lively(artifact.model)
    for module in tree.block_linears(artifact.model).values():
        module.weight.data /= 4
    for name, norm in tree.norms(artifact.model).items():
        if inside in name and len(norm) == 32:
            norm.data[::16] *= times
    return artifact


@torch.no_grad()
def outputs(artifact: Artifact) -> torch.Tensor:
    """Return what the model gives for two sequences of 16 tokens, in float64."""
    given: torch.Tensor = artifact.model(torch.arange(2, 34).view(2, 16))[0]
    return given.double()


def state(artifact: Artifact) -> dict[str, torch.Tensor]:
    """Return a copy of every tensor of the model."""
    return {n: artifact.tensor(n).clone() for n in artifact.tensor_names()}


def uneven(artifact: Artifact) -> Artifact:
    """Return the artifact with blocks of unlike shapes: the first without attention, the second without FFN."""
    none = torch.tensor([], dtype=torch.int64)
    lively(artifact.model)
    blocks.slice_(artifact.model, 0, kv_groups=none, neurons=torch.tensor([0, 5, 9]))
    blocks.slice_(artifact.model, 1, kv_groups=torch.tensor([1]), neurons=none)
    return artifact


def standing(artifact: Artifact) -> Artifact:
    """Return the artifact with linears that stand in for the first block's attention and the second one's FFN."""
    model = artifact.model
    shapes = blocks.of(model)
    wanted = (
        dataclasses.replace(shapes[0], heads=0, kv_heads=0, linear_attention=True),
        dataclasses.replace(shapes[1], ffn=0, linear_ffn=True),
    )
    lively(model)
    for block, config in zip(tree.blocks(model).values(), wanted, strict=True):
        blocks.reshape_(block, tree.family(model), config, norm_first=tree.norm_first(model))
    for index, name in enumerate((tree.family(model).qkvo[-1], tree.family(model).down)):
        linear = list(tree.blocks(model).values())[index].get_submodule(name)
        torch.nn.init.normal_(linear.get_parameter("weight"), std=0.2)
    return artifact


def branched(artifact: Artifact, rank: int = 3) -> Artifact:
    """Return the artifact with a branch beside every second linear of the blocks."""
    chosen = list(tree.block_linears(artifact.model).items())[::2]
    sizes = {n: (m.out_features, m.in_features) for n, m in chosen}
    made = {
        n: blocks.Branch(torch.randn(rank, columns) / 8, torch.randn(rows, rank) / 8)
        for n, (rows, columns) in sizes.items()
    }
    blocks.branch_(artifact.model, made)
    return artifact


def a_grid(shape: tuple[int, int], fact: GridFact, mask: torch.Tensor | None = None) -> Grid:
    """Return a grid of random codes, steps and zeros (or offsets); codes that the mask prunes stand for 0."""
    low, high = bounds(fact.bits)
    many = (shape[0], groups(shape[1], fact.group_size))
    codes = torch.randint(low, high + 1, shape, dtype=torch.int8)
    zero = torch.randint(low, high + 1, many, dtype=torch.int8) if fact.zero else None
    if mask is not None:
        none = torch.zeros(many, dtype=torch.int8) if zero is None else zero
        codes = torch.where(mask, codes, spread(none, shape[1], fact.group_size))
    return Grid(
        bits=fact.bits, group_size=fact.group_size, codes=codes.to(DTYPES[fact.format]),
        scale=(torch.rand(many) + 0.5) / 2**fact.bits, zero=zero,
        offset=torch.randn(many) / 8 if fact.offset else None, activation=fact.activation,
        input_scale=torch.tensor(1 / 32) if fact.activation == "static" else None,
    )  # fmt: skip


def quantized(artifact: Artifact, facts: GridFact | Mapping[str, GridFact]) -> Artifact:
    """Return the artifact with random codes for every linear of the blocks, or for those that are named."""
    linears = tree.block_linears(artifact.model)
    kinds = dict.fromkeys(linears, facts) if isinstance(facts, GridFact) else facts
    made = {
        n: a_grid((linears[n].out_features, linears[n].in_features), fact, artifact.masks.get(n))
        for n, fact in kinds.items()
    }
    for name, grid in made.items():
        linears[name].weight.data = grid.dequantized().to(linears[name].weight)
    return artifact.after(grids=made)


@pytest.fixture(scope="session")
def tokenizer() -> tf.PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<s>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    bpe.train_from_iterator(
        ["the quick brown fox jumps over the lazy dog; a model is pruned and retrained " * 8], trainer
    )
    made: tf.PreTrainedTokenizerFast = tf.PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    return made


@pytest.fixture(scope="session")
def tiny(tokenizer: tf.PreTrainedTokenizerFast) -> Callable[..., Artifact]:
    """Return a maker of tiny artifacts: `tiny("llama")`, `tiny("bert", task="classification")`."""

    def make(kind: str = "llama", task: Any = None, seed: int = 0) -> Artifact:
        torch.manual_seed(seed)
        config = _config(kind)
        task = task or ("classification" if kind in ENCODERS else "causal-lm")
        classes: dict[str, Any] = {
            "causal-lm": tf.AutoModelForCausalLM,
            "classification": tf.AutoModelForSequenceClassification,
            "regression": tf.AutoModelForSequenceClassification,
            "embedding": tf.AutoModel,
        }
        if task == "regression":
            config.num_labels = 1
        model = classes[task].from_config(config).eval()
        tree.linearise_(model)
        return Artifact(model=model, tokenizer=tokenizer, task=task)

    return make


@pytest.fixture
def context(tmp_path: Path) -> Callable[..., Context]:
    """Return a maker of contexts with calibration data for an artifact: `context(artifact, "folder")`."""
    (tmp_path / "text.txt").write_text(TEXT * 20)
    lines = [" ".join(TEXT.split()[: 3 + i % 9]) for i in range(16)]
    (tmp_path / "classes.csv").write_text("text,label\n" + "".join(f'"{t}",{i % 2}\n' for i, t in enumerate(lines)))

    def made(artifact: Artifact, name: str = "run") -> Context:
        source = "text.txt" if artifact.task == "causal-lm" else "classes.csv"
        settings = DataSettings(source=str(tmp_path / source), windows=8, length=16)
        (tmp_path / name).mkdir(exist_ok=True)
        data = {"calibration": Source(settings, "calibration", artifact.task)}
        return Context(folder=tmp_path / name, report=QuietReport(), data=data)

    return made


@pytest.fixture(scope="session")
def engine_of(tiny: Callable[..., Artifact], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a maker of verified engine folders, each made once and only to be read: `engine_of("llama")`."""

    @functools.cache
    def make(kind: str = "llama", task: Any = None, precision: Any = "fp32") -> Path:
        found = registry.load("exporters", "onnx", Exporter)
        folder = tmp_path_factory.mktemp(f"{kind}-{precision}")
        target, context = Target(prompt=16, generate=4, precision=precision), Context(folder=folder)
        Engines().build(tiny(kind, task), found(found.Settings()), target, folder, context)
        return folder

    return make
