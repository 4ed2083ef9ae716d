"""One training under way: step, judge, keep, resume."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from compress import files
from compress.context import Bar, Context
from compress.errors import Diverged, Tampered
from passes._train.recipe import STRIDE, Group, Trained, TrainSettings, autocast, lr_factor
from passes._train.team import Team, own, part, whole

_WINDOW = 10  # losses of which a median is taken
_RUNAWAY = 2.0  # times the median of the first losses
_PATIENCE = 3  # validations in a row that may fail to improve


class Companion(Protocol):
    """What goes along with a training and has a state of its own, such as a schedule of ranks."""

    def after_step(self, step: int) -> None:
        """Act on the update of a step, 0 <= step < steps; its gradients are still there."""

    def state(self) -> dict[str, Tensor]:
        """Return all that the next step depends on."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` returned."""


class Loop:
    """The state of one training."""

    def __init__(
        self,
        groups: Sequence[Group],
        settings: TrainSettings,
        context: Context,
        name: str,
        curve: str | None,
        validate: Callable[[], float] | None,
        since: int,
        companion: Companion | None,
        team: Team,
    ) -> None:
        self.settings, self.context, self.name, self.curve = settings, context, name, curve
        self.validate, self.since, self.companion, self.team = validate, since, companion, team
        self.path = context.folder / f"{name}.safetensors"
        self.tensors = {n: p for g in groups for n, p in g.parameters.items()}
        kept = {n: m.to(context.device) for g in groups for n, m in g.masks.items()}
        self.pruned = {n: ~own(part(m, self.tensors[n])) for n, m in kept.items()}
        tables = [{"params": list(g.parameters.values()), "peak": g.lr, "weight_decay": g.weight_decay} for g in groups]
        self.optimizer = torch.optim.AdamW(tables, fused=True)
        self.done, self.best = Trained(), dict[str, Tensor]()

    @property
    def step(self) -> int:
        return len(self.done.curve)

    def advance(self, loss_of: Callable[[int], Tensor], bar: Bar) -> None:
        """Do one step."""
        step, settings = self.step, self.settings
        torch.manual_seed((self.context.seed + STRIDE * step) % 2**63)  # so that dropout, if any, resumes too
        self.optimizer.zero_grad()
        value = 0.0
        for number in range(step * settings.accumulation, (step + 1) * settings.accumulation):
            with autocast(settings, self.context.device):
                loss = loss_of(self.team.batch(number)) / settings.accumulation
            loss.backward()  # type: ignore[no-untyped-call]
            value += float(loss.detach())
        value = self.team.mean(value)
        norm = self._gradients_()
        self._judge(value, norm)
        if step % settings.checkpoint_every == 0:
            self.save()
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * self._factor(step)
        self.optimizer.step()
        if self.companion:
            self.companion.after_step(step)
        self.done.curve.append(value)
        self.record(step, value)
        bar.advance()
        bar.show(f"loss {value:.4f}")

    def record(self, step: int, value: float) -> None:
        if self.curve:
            lr = self.optimizer.param_groups[0]["peak"] * self._factor(step)
            self.context.report.record(self.curve, [step, value, lr])

    def improves(self) -> bool:
        """Validate this very state, once, and tell whether it is worth going on."""
        assert self.validate is not None
        seen = self.done.validations
        if not seen or seen[-1][0] != self.step:
            with torch.no_grad(), autocast(self.settings, self.context.device):
                value = self.team.mean(self.validate())
            if not math.isfinite(value):
                self._diverge(f"the validation gave {value}")
            if value < min((v for _, v in seen), default=math.inf):
                self.done.best = self.step
                self.best = {n: p.detach().clone() for n, p in self.tensors.items()}
            seen.append((self.step, value))
        return sum(step > self.done.best for step, _ in seen) < _PATIENCE

    def finish(self) -> None:
        """Leave the best state, or the last one where nothing validates, in the tensors."""
        if self.validate is None:
            self.done.best = self.step
            finite = all(bool(own(p).isfinite().all()) for p in self.tensors.values())
            if self.team.mean(float(finite)) < 1:
                self._diverge("the last update is not finite")
            return
        self.improves()
        self._put(self.best)

    def save(self) -> None:
        """Write the state before this step's update; one file, whole or absent."""
        content = {f"now.{n}": p.detach() for n, p in self.tensors.items()}
        content |= {f"best.{n}": p for n, p in self.best.items()}
        for name, tensor in self.tensors.items():
            content |= {f"{key}.{name}": moment for key, moment in self.optimizer.state[tensor].items()}
        if self.companion:
            content |= {f"companion.{n}": t for n, t in self.companion.state().items()}
        state = {"curve": self.done.curve, "validations": self.done.validations, "best": self.done.best}
        content = {n: whole(t).contiguous() for n, t in content.items()}
        if self.team.rank == 0:
            files.write_atomic(self.path, save(content, metadata={"state": json.dumps(state)}))
        self.team.wait()

    def load(self) -> None:
        """Read what `save` wrote.

        Raises:
            Tampered: it is of other tensors.
        """
        with safe_open(self.path, framework="pt", device=str(self.context.device)) as file:
            state = json.loads(file.metadata()["state"])
            content: dict[str, dict[str, Tensor]] = {}
            keys = file.keys()
            for key in keys:
                kind, _, name = key.partition(".")
                content.setdefault(kind, {})[name] = file.get_tensor(key)
        now = content.pop("now", {})
        if {n: t.shape for n, t in now.items()} != {n: p.shape for n, p in self.tensors.items()}:
            raise Tampered(f"{self.path}: a checkpoint of other tensors; delete it and run again")
        self._put(now)
        self.best = {n: part(t, self.tensors[n]) for n, t in content.pop("best", {}).items()}
        if self.companion:
            self.companion.restore(content.pop("companion", {}))
        for key, moments in content.items():
            for name, moment in moments.items():
                self.optimizer.state[self.tensors[name]][key] = part(moment, self.tensors[name])
        seen = [(int(step), float(value)) for step, value in state["validations"]]
        self.done = Trained(curve=state["curve"], validations=seen, best=state["best"])

    def _put(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in values.items():
                self.tensors[name].copy_(part(value, self.tensors[name]))

    def _gradients_(self) -> float:
        """Average the gradients over the team, take from them what belongs to pruned weights, clip; return the norm."""
        self.team.average_(self.tensors.values())
        for name, pruned in self.pruned.items():
            gradient = self.tensors[name].grad
            if gradient is not None:
                own(gradient).masked_fill_(pruned, 0)
        norm = clip_grad_norm_(self.tensors.values(), self.settings.clip or math.inf)
        return float(whole(norm))

    def _factor(self, step: int) -> float:
        return lr_factor(step, self.settings.steps, self.settings.warmup, self.settings.schedule)

    def _judge(self, value: float, norm: float) -> None:
        if not math.isfinite(value):
            self._diverge(f"the loss is {value}")
        if not math.isfinite(norm):
            self._diverge(f"the gradient's norm is {norm}")
        curve = [*self.done.curve, value][self.since :]
        first, last = curve[:_WINDOW], curve[-_WINDOW:]
        watched = self.validate is None and len(curve) > 2 * _WINDOW  # a validation goes back by itself
        if watched and statistics.median(last) > _RUNAWAY * statistics.median(first):
            rise = f"{statistics.median(first):.4g} to {statistics.median(last):.4g}"
            self._diverge(f"the loss rose from {rise} (medians of {_WINDOW} steps)")

    def _diverge(self, why: str) -> NoReturn:
        step = self.step
        if self.path.exists():
            self.load()
        lrs = ", ".join(f"{g['peak']:g}" for g in self.optimizer.param_groups)
        kept = f"the state after step {self.step} is kept" if self.step else "the state is as it was before"
        raise Diverged(
            f"{self.name}: {why} at step {step + 1} of {self.settings.steps}; {kept}; "
            f"a lower lr (got {lrs}) or a longer warmup would do"
        )
