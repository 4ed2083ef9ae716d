"""RIA: prune the weights that matter least relative to their row and their column, given what they read.

Formula: `score = (|W_ij| / sum_j |W_ij| + |W_ij| / sum_i |W_ij|) * |X_j|^a`, with `|X_j|` the root mean square of input
j over the calibration tokens and a = 0.5; the lowest of each row, or of the matrix, are pruned, or N of every M
neighbours along the inputs stay.  Blocks are done in order, each on what the pruned blocks before it give.

Options: `permute = true` with N:M orders inputs so that the groups retain more of the score: FFN neurons, and the
inputs of the attention's output linear within each value head, where what makes them is permuted alike and the model's
function stays the same; strong columns are dealt out evenly, then pairs of columns are swapped while that helps.
`refine = "swaps"` and `densities = "owl"` as in `wanda`.

Papers: Zhang et al. 2024, Plug-and-Play: An Efficient Post-training Pruning Method for LLMs (RIA); SparseSwaps (arXiv
2512.10922); Yin et al. 2023, OWL (arXiv 2310.05175).

Cost: as `wanda`; a permutation costs one more walk over the blocks, and a pass over `out * in * M^2` scores a round.
Keeps: every weight that stays, bit for bit (in its new place where permuted); earlier masks, norms, embeddings, head.
Helps: where `wanda` starves rows or columns whose weights are all small; the permutation, at 2:4 (demo model, 48
windows of 128 tokens: perplexity 30.8 to 28.9); on small models scope `matrix`.
Hurts: as `wanda`; a permutation parts neurons and heads from their places in the parent, so that nothing that compares
them place by place can follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from pydantic import Field
from safetensors.torch import load_file, save
from torch import Tensor

from compress import files, tree
from compress.artifact import Artifact
from compress.context import Context
from compress.errors import BadSettings
from compress.facts import Facts
from compress.families import families
from passes import _densities, _rules
from passes._layerwise import Inputs
from passes._masks import Pattern, Scope
from passes._oneshot import Attempt, Oneshot, OneshotSettings, Task
from passes._plans import PLAN
from passes.ria import search
from passes.ria.permute import Permuted, Site, permute_, recovered, sites


class RIASettings(OneshotSettings):
    """Settings of RIA."""

    scope: Literal["row", "matrix"] = Field(
        "row", description="what the sparsity is of: each output row or each matrix"
    )
    power: float = Field(0.5, ge=0, le=4, description="a: how much the strength of the inputs counts")
    permute: bool = Field(
        False, description="with N:M: order neurons and the inside of value heads so that the groups retain more"
    )
    permute_rounds: int = Field(100, ge=0, description="with 'permute': rounds of swaps between pairs of groups")


def score(weight: Tensor, square: Tensor, power: float) -> Tensor:
    """Return the relative importance times the strength of the inputs, float32 `[out, in]`.

    Args:
        weight: W `[out, in]`.
        square: mean square of each input, `[in]`.
        power: a.
    """
    size = weight.abs().float()
    least = torch.finfo(torch.float32).tiny  # of a sum: a row or column of zeros scores 0
    relative = size / size.sum(1, keepdim=True).clamp(min=least) + size / size.sum(0, keepdim=True).clamp(min=least)
    return relative * square.sqrt().pow(power)


class RIA(Oneshot):
    """Prune what matters least in its row and column."""

    Settings = RIASettings
    settings: RIASettings

    @property
    def scope(self) -> Scope:
        """What the sparsity is of when the pattern is unstructured."""
        return self.settings.scope

    def plan(self, facts: Facts) -> Facts:
        """Return the facts with the masks to come.

        Raises:
            BadSettings: as every pruning, or there is nothing to permute, or a permutation would break a pattern.
        """
        after = super().plan(facts)
        given = self.settings
        if "permute_rounds" in given.model_fields_set and not given.permute:
            raise BadSettings(f"only with 'permute', got {given.permute_rounds}; leave it out", key="permute_rounds")
        if given.permute:
            table, rules = families()[facts.family], _rules.of(facts, given, lambda: self.rule)
            readers = [n for n in rules if n.endswith((f".{table.down}", f".{table.qkvo[-1]}"))]
            if given.pattern != PLAN and not (readers and self.rule.pattern.group):
                what = "no N:M pattern" if readers else f"neither {table.down} nor {table.qkvo[-1]} among the linears"
                raise BadSettings(f"there is {what} to permute for; leave it out", key="permute")
            for name in readers:
                if name in facts.masks and Pattern.parse(facts.masks[name].pattern).group:
                    what = f"would break the pattern {facts.masks[name].pattern} that {name} has"
                    raise BadSettings(f"{what}; leave it out or exclude that linear", key="permute")
        return after

    def attempts(self, inputs: Inputs, tasks: Sequence[Task], note: Callable[[str], None]) -> Iterator[list[Attempt]]:
        """Yield plain zeroing of the lowest scores and, where asked for, what swaps make of it."""
        for task in tasks:
            yield self.refined(task.weight, task.mask(score(task.weight, inputs.square, self.settings.power)), task)

    def saliency(self, weight: Tensor, square: Tensor) -> Tensor:
        """Return the relative importance times the strength of the inputs."""
        return score(weight, square, self.settings.power)

    def run(self, artifact: Artifact, context: Context) -> Artifact:
        """Permute where asked for, then prune block by block."""
        if self.settings.permute:
            artifact = self._permuted(artifact, context)
        return self.prune(artifact, context)

    def ensures(self, before: Artifact, after: Artifact) -> None:
        """Check the counts, the zeros, and that nothing else changed by a bit; what was permuted, in its new order."""
        if not self.settings.permute:
            self.check(before, after)
            return
        rows = {n: linear.out_features for n, linear in tree.block_linears(before.model).items()}
        moves: dict[str, tuple[int, Tensor]] = {}
        for site in self._sites(before):
            moves |= site.moves(recovered(site, before, after), rows)
        self.check(Permuted(before, moves), after)

    def _permuted(self, artifact: Artifact, context: Context) -> Artifact:
        """Search for the orders, or read them, and permute the model."""
        path = context.folder / "orders.safetensors"
        found = list(self._sites(artifact))
        if not path.exists():
            squares = _densities.squares(artifact, [s.reader for s in found], self.settings, context)
            with context.report.bar("permutations", len(found)) as bar:
                orders = dict[str, Tensor]()
                for site in found:
                    orders[site.reader] = self._orders(artifact, site, squares[site.reader], context)
                    bar.advance()
            files.write_atomic(path, save(orders))
        orders = load_file(path)
        rows = {n: linear.out_features for n, linear in tree.block_linears(artifact.model).items()}
        return permute_(artifact, {n: m for s in found for n, m in s.moves(orders[s.reader], rows).items()})

    def _orders(self, artifact: Artifact, site: Site, square: Tensor, context: Context) -> Tensor:
        """Return the best orders found for one site, int64 `[units, width]`."""
        pattern, given = self.rules(artifact)[site.reader].pattern, self.settings
        weight = artifact.tensor(f"{site.reader}.weight").to(context.device)
        scores = score(weight, square.to(context.device), given.power)
        parts = scores.view(len(weight), site.units, site.copies, site.width).permute(1, 0, 2, 3)
        found = [
            search.order(
                part.reshape(-1, site.width), pattern.keep, pattern.group,
                rounds=given.permute_rounds, seed=context.seed,
            )
            for part in parts
        ]  # fmt: skip
        moved = torch.stack([p[..., o] for p, o in zip(parts, found, strict=True)])
        was, now = (search.retained(s.reshape(-1, site.width), pattern.keep, pattern.group) for s in (parts, moved))
        context.report.record("permuted", [site.reader, was, now])
        return torch.stack(found)

    def _sites(self, artifact: Artifact) -> Iterator[Site]:
        """Yield the sites of the chosen linears whose units hold whole groups."""
        rules = self.rules(artifact)
        yield from (s for s in sites(artifact, list(rules)) if s.width % rules[s.reader].pattern.group == 0)
