"""Which linear gets which rule of zeros: the settings' for all, or what an earlier pass planned for each.

What every pass shares that chooses masks without training, its candidates too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

from pydantic import AfterValidator, Field
from torch import Tensor

from compress import tree
from compress.artifact import Artifact
from compress.context import Context
from compress.contracts import Candidate
from compress.errors import BadSettings
from compress.facts import Facts
from passes import _candidates, _plans
from passes._candidates import Choose, Windows
from passes._masks import MaskSettings, Pattern, Rule
from passes._plans import PLAN
from passes._sensitivity import Change

Score = Callable[[str, Tensor], Tensor]  # of a linear's name and weight, its weights' scores; the highest stay

NOTHING = "pruned nothing: all that is chosen is planned to stay dense"
_CHOICE = ("choose", "choose_windows")
_REPLACED = ("sparsity", "scope", "minimum_density", "densities", *_CHOICE)


class PruneSettings(MaskSettings):
    """What a pass takes that chooses masks without training."""

    pattern: Annotated[str, AfterValidator(lambda text: text if text == PLAN else str(Pattern.parse(text)))] = Field(
        "unstructured",
        description="'unstructured', or N:M: of every M neighbours along the inputs keep N; 'plan': each linear gets "
        "the pattern that an earlier pass chose for it, or stays dense where it chose none",
    )
    choose: Choose = "layer"
    choose_windows: Windows = 8


def of(facts: Facts, settings: PruneSettings, usual: Callable[[], Rule]) -> dict[str, Rule]:
    """Return the rule of every linear to prune, by name in order; none where the plan leaves all of them dense.

    Args:
        facts: shapes and plan of the model.
        settings: which linears, and whether the plan tells.
        usual: makes the rule of all of them where it does not.

    Raises:
        BadSettings: the patterns choose nothing, `usual` raises it, or there is no plan to follow.
    """
    if settings.pattern != PLAN:
        return dict.fromkeys(tree.select(list(facts.shapes), settings.include, settings.exclude), usual())
    _plans.check(facts, settings, "pattern", *_REPLACED)
    patterns = {n: Pattern.parse(p.pattern) for n, p in _plans.chosen(facts, settings).items() if p.pattern}
    return {n: Rule(pattern=p, sparsity=1 - p.keep / p.group) for n, p in patterns.items()}


def of_artifact(artifact: Artifact, settings: PruneSettings, usual: Callable[[], Rule]) -> dict[str, Rule]:
    """Return the rule of every linear of an artifact that is to be pruned, or was; as `of` does."""
    return of(tree.facts(artifact.model, artifact.task).after(plan=artifact.plan), settings, usual)


def plan(facts: Facts, settings: PruneSettings, usual: Callable[[], Rule]) -> Facts:
    """Return the facts with the masks to come.

    Raises:
        BadSettings: as `of` and `Rule.plan` do, or settings are given that only candidates have a use for.
    """
    rules = of(facts, settings, usual)
    for key in sorted(settings.model_fields_set & set(_CHOICE)):
        what = f"only where a pass chooses among candidates, got {getattr(settings, key)}"
        raise BadSettings(f"{what}; leave it out", key=key)
    for rule, names in grouped(rules).items():
        facts = rule.plan(facts, names)
    return facts


def grouped(rules: Mapping[str, Rule]) -> dict[Rule, list[str]]:
    """Return the linears by rule."""
    found: dict[Rule, list[str]] = {}
    for name, rule in rules.items():
        found.setdefault(rule, []).append(name)
    return found


def candidates(
    artifact: Artifact, settings: PruneSettings, rules: Mapping[str, Rule], score: Score, context: Context
) -> list[Candidate]:
    """Return for each linear (block, part) it as it is and pruned; judged by plain zeroing, no weight makes up for it.

    Bytes are those of what stays, and a bit for every weight that tells which.

    Args:
        artifact: the model as it is, which stays so.
        settings: with the pattern.
        rules: of every linear to prune, as `of` returned them.
        score: of a weight.
        context: with calibration data.

    Raises:
        BadSettings: as `Rule.plan` does, the pattern is planned, or all linears compete for the same share.
        BadModel: outputs are NaN or infinite.
    """
    if settings.pattern == PLAN:
        raise BadSettings(f"leaves nothing to choose, got {PLAN!r}; give N:M", key="pattern")
    rule = next(iter(rules.values()))
    if rule.scope == "global":
        raise BadSettings("no linear can be judged by itself, got 'global'; leave it out", key="scope")
    rule.plan(tree.facts(artifact.model, artifact.task), list(rules))
    linears, choice = tree.block_linears(artifact.model), {"pattern": settings.pattern}

    def made(name: str, weight: Tensor) -> Tensor:
        mask = rule.masks({name: score(name, weight)}, artifact.masks)[name]
        return weight.masked_fill(~mask, 0)

    def size(name: str) -> float:
        weight = linears[name].weight
        rows, inputs = weight.shape
        return (1 - rule.sparsity) * weight.nbytes + rows * -(-inputs // 8)

    options = {
        key: [
            _candidates.Option(
                choice=choice if rule.pattern.group else choice | {"sparsity": rule.sparsity},
                change=Change(key=f"{key} in {rule.pattern}", names=names, made=made),
                bytes=sum(map(size, names)),
            )
        ]
        for key, names in _candidates.units(artifact.model, rules, settings.choose).items()
    }
    return _candidates.judged(artifact, options, settings, settings.choose_windows, context)
