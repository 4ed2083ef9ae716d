"""Quality of a model, an artifact or an engine, in figures with 95 % intervals, alone or beside its parent.

Perplexity follows the usual protocol: the text is tokenised once and cut into windows of one length; each window's
loss is the mean over its predicted tokens, and perplexity is exp of the mean over windows.
"""

from compress.evaluate.loop import Examples, evaluate, evaluate_choices, evaluate_source
from compress.evaluate.paths import evaluate_path
from compress.evaluate.result import Evaluation, Kind, Metric, compare, summarise
from compress.evaluate.scorers import EngineScorer, ModelScorer, Scorer, Subject

__all__ = [
    "EngineScorer", "Evaluation", "Examples", "Kind", "Metric", "ModelScorer", "Scorer", "Subject", "compare",
    "evaluate", "evaluate_choices", "evaluate_path", "evaluate_source", "summarise",
]  # fmt: skip
