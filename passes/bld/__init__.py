"""Blockwise local distillation: every block variant learns by itself what the parent's block gives; a library of them.

Formula: the parent's hidden states h go in, o_p = parent(h) and o_c = variant(h) come out, and AdamW lowers
`MSE(o_p, o_c) / MSE(o_p, 0)` over all tokens but padding.  An attention variant is trained beside the parent's frozen
FFN and an FFN variant beside its frozen attention (`decoupled`: m + n trainings a block), then, if wanted, every pair
of them together from there (`coupled`: m n more).  No gradient leaves a block, so trainings run side by side, here or
on a Ray cluster, and what they give does not depend on how many do.  Windows of the calibration data choose the best
state, the first one included, so that no variant gets worse.

Paper: Bercovich et al. 2024, Puzzle: Distillation-Based NAS for Inference-Optimized LLMs (arXiv 2411.19146).

Cost: one forward of the training windows through the parent, a block at a time, and for each variant `steps` batches
through one block.  A worker holds one block; on disk are the hidden states at the doors of the blocks in work.
Keeps: the model, bit for bit, with masks and plan; under a mask variants are trained with their zeros.
Helps: wherever blocks are then chosen; a small model wants a higher rate than the default (demo model, one block, 100
steps of 4 windows of 128 tokens at 3e-3: pooled `kv 50%` goes from 3.5 % of the block's output to 1.1 %, linear
attention from 10.3 % to 7.8 %, half the neurons from 0.80 % to 0.65 %, a linear FFN from 6.9 % to 4.5 %; at 1e-3 to
1.7, 9.1, 0.68 and 5.4 %, at 1e-2 half the neurons gain next to nothing).
Hurts: blocks know only what the parent gives, so errors that meet downstream are not seen; that is for training the
whole afterwards.  Few training windows fit their text, as held-out errors tell.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from compress.artifact import Artifact
from compress.context import Context
from compress.contracts import DataUse, Estimate, Pass
from compress.facts import Facts
from passes import _pruned
from passes._distillation import Pick, distil
from passes._library import PARTS, Library, SpaceSettings, Variant, digest, variants
from passes.bld import checking, picking
from passes.bld.settings import BldSettings


class Bld(Pass):
    """Make a library of distilled blocks."""

    Settings = BldSettings
    uses = frozenset[DataUse]({"calibration", "training"})
    streams = True
    library = True
    settings: BldSettings

    def plan(self, facts: Facts) -> Facts:
        """Return the same facts with a library.

        Raises:
            BadSettings: a variant does not fit the family or the masks, or there is none.
        """
        variants(facts, self.settings)
        return facts.after(library=True)

    def estimate(self, facts: Facts) -> Estimate:
        """Return the cost of all trainings, one after the other."""
        return picking.cost(facts, self._picks(variants(facts, self.settings)), self.settings)

    def run(self, artifact: Artifact, context: Context) -> Artifact:
        """Train all variants into a library that goes along with the model."""
        given = self.settings
        found = variants(context.facts or _pruned.facts_of(artifact), given)
        library = Library(context.folder / "library")
        data = {role: source.digest for role, source in sorted(context.data.items())}
        library.seal(digest(artifact), data, given.model_dump(mode="json", include=set(SpaceSettings.model_fields)))
        if artifact.library:
            context.report.note("the library that came with the model is replaced")
        for part in PARTS:
            if idle := [n for n in getattr(given, part) if all((v.part, v.name) != (part, n) for v in found)]:
                context.report.note(
                    f"{part} {', '.join(idle)}: fits no block here, or is what another one is; left out"
                )
        distil(artifact, picking.alone(found), library, given, given, context)
        if given.coupling == "coupled":
            distil(artifact, list(picking.pairs(found)), library, given, given, context, name="coupled")
        _tell(library, self._picks(found), context)
        return artifact.after(library=library.folder)

    def ensures(self, before: Artifact, after: Artifact) -> None:
        """Check that the model is what it was, and that its library has every variant and is its own."""
        facts = checking.facts_of(before, after)
        checking.check(before, after, self._picks(variants(facts, self.settings)))

    def _picks(self, found: Sequence[Variant]) -> list[Pick]:
        together = picking.pairs(found) if self.settings.coupling == "coupled" else ()
        return [*picking.alone(found), *together]


def _tell(library: Library, picks: Sequence[Pick], context: Context) -> None:
    """Record the held-out errors of all variants, and note what they come to."""
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for pick in picks:
        beside = pick[1] if len(pick) > 1 else None
        record = library.record(pick[0], beside=beside)
        assert record is not None
        name = " and ".join(f"{v.part} {v.name}" for v in pick)
        context.report.record("blocks", [pick[0].block, name, record["before"], record["after"], record["best"]])
        kinds.setdefault(name, []).append(record)
    for name, records in kinds.items():
        before, after = (statistics.median(r[end] for r in records) for end in ("before", "after"))
        context.report.note(
            f"{name}: off by {after:.3%} of the block's output in the median of {len(records)} blocks, "
            f"{before:.3%} untrained; most, {max(r['after'] for r in records):.3%}"
        )
