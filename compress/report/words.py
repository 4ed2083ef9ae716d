"""Numbers and verdicts in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from compress.gain import NOISE
from compress.measure import Time, digits

PRUNED = 0.01  # a share of zeros below this is chance, not pruning
_NAMES = {
    "perplexity": "Perplexity",
    "nats_per_token": "Loss, nats per token",
    "bits_per_byte": "Bits per byte",
    "kl": "KL divergence from the dense model",
    "agreement": "Same first choice as the dense model",
    "cosine": "Cosine to the dense embedding",
    "accuracy": "Accuracy",
    "f1": "F1",
    "mcc": "Matthews correlation",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "pearson_spearman": "Mean of Pearson and Spearman",
    "choice_accuracy": "Choices right",
    "choice_accuracy_normalised": "Choices right, by length",
}
_LESS_IS_BETTER = {"perplexity", "nats_per_token", "bits_per_byte", "kl"}
_SHARES = {"agreement", "accuracy", "choice_accuracy", "choice_accuracy_normalised"}
Tone = Literal["good", "bad", "same"]


@dataclass(frozen=True)
class Change:
    """How something moved: in words, and whether that is good."""

    text: str
    tone: Tone


def metric_name(name: str) -> str:
    """Return what a metric is called on the page."""
    return _NAMES.get(name, name.replace("_", " ").capitalize())


def direction(name: str) -> str:
    """Return which way a metric is better."""
    return "lower is better" if name in _LESS_IS_BETTER else "higher is better"


def amount(metric: Mapping[str, Any], value: float, *, signed: bool = False) -> str:
    """Return a value of the metric with sensible digits."""
    text = f"{100 * value:.1f}%" if metric["name"] in _SHARES else digits(value, 3 if signed else 4)
    return f"+{text}" if signed and value > 0 else text


def interval(metric: Mapping[str, Any], *, signed: bool = False) -> str | None:
    """Return the metric's interval, or None where it has none."""
    low, high = metric.get("low"), metric.get("high")
    if low is None or high is None:
        return None
    return f"{amount(metric, low, signed=signed)} to {amount(metric, high, signed=signed)}"


def moved(delta: Mapping[str, Any], dense: Mapping[str, Any] | None) -> Change:
    """Tell a paired difference: how much, how much of the dense value, and whether it is clear of chance."""
    value, low, high = delta["value"], delta.get("low"), delta.get("high")
    text = amount(delta, value, signed=True)
    if dense and dense["value"] and delta["name"] not in _SHARES:
        text += f", {100 * value / abs(dense['value']):+.1f}%"
    if value == 0 or (low is not None and high is not None and low <= 0 <= high):
        return Change(f"{text}: no clear difference", "same")
    better = (value < 0) == (delta["name"] in _LESS_IS_BETTER)
    return Change(f"{text}: {'better' if better else 'worse'}", "good" if better else "bad")


def sped(time: Time) -> Change:
    """Tell how fast against the dense engine."""
    between = f"{1 / time.ratio_high:.2f} to {1 / time.ratio_low:.2f}"
    if abs(1 - time.ratio) < NOISE or time.ratio_low <= 1 <= time.ratio_high:
        return Change(f"as fast as dense ({between} times)", "same")
    if time.ratio < 1:
        return Change(f"{1 / time.ratio:.2f} times as fast ({between})", "good")
    return Change(f"takes {time.ratio:.2f} times as long ({time.ratio_low:.2f} to {time.ratio_high:.2f})", "bad")


def shrunk(now: float | None, before: float | None) -> Change | None:
    """Tell how a size changed, where both are known."""
    if not now or not before:
        return None
    share = now / before - 1
    if abs(share) < 0.01:
        return Change("unchanged", "same")
    return Change(f"{abs(share):.0%} {'smaller' if share < 0 else 'larger'}", "good" if share < 0 else "bad")


def mib(value: float | None) -> str:
    """Return a size."""
    return "unknown" if value is None else f"{digits(value)} MiB"


def milliseconds(value: float) -> str:
    """Return a time: seconds from a thousand milliseconds on."""
    return f"{digits(value)} ms" if value < 1000 else f"{digits(value / 1000)} s"


def duration(seconds: float) -> str:
    """Return how long a step took."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def parameters(count: int) -> str:
    """Return a number of parameters in millions or billions."""
    return f"{digits(count / 1e9)} billion" if count >= 1e9 else f"{digits(count / 1e6)} million"


def sparsity(layers: Sequence[Mapping[str, Any]]) -> float:
    """Return the share of zeros over all layers together."""
    sizes = [layer["shape"][0] * layer["shape"][1] for layer in layers]
    zeros = sum(size * layer["sparsity"] for size, layer in zip(sizes, layers, strict=True))
    return zeros / sum(sizes) if layers else 0.0


def hints(content: Mapping[str, Any]) -> list[str]:
    """Return what the figures do not say by themselves: why something did not get faster or smaller."""
    found = []
    masked = [layer for layer in content.get("layers", ()) if layer["sparsity"] > PRUNED]
    runtimes = sorted(
        {str((e.get("settings") or {}).get("runtime", "onnxruntime")) for e in content.get("engines", ())}
    )
    if masked and "onnxruntime" in runtimes:
        patterns = sorted({str(layer.get("pattern") or "unstructured") for layer in masked})
        found.append(
            f"The zeros are {' and '.join(patterns)}, and onnxruntime has no kernel for such patterns: it multiplies "
            "by zeros as by any other number. So the engine is neither faster nor smaller for them, though an archive "
            "of it is. A runtime with sparse kernels, or pruning of whole rows or heads, would turn zeros into speed."
        )
    if content.get("engines") and not content.get("quality"):
        found.append("No quality was measured, so nothing here says what the compression cost.")
    return found
