"""The methods that `peft` brings; imported where they are used, for the import takes seconds.

Its layers are put into the model in place and taken out by its own merge, which leaves every name as it was.  The loss
is always ours, from the logits.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import BrokenPromise
from passes.recover.chosen import Chosen
from passes.recover.settings import RecoverSettings

_ADAPTER = "default"


class Borrowed:
    """A peft tuner around the model; after `merge_` there is nothing of it left.

    Args:
        model: changed in place.
        chosen: where the layers go.
        settings: which method, and how.
        seed: of what starts at random.
    """

    def __init__(self, model: nn.Module, chosen: Chosen, settings: RecoverSettings, seed: int) -> None:
        tuner, config = _of(chosen, settings)
        wanted = set(config.target_modules)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Unsupported layer type")  # of norms that peft does not know
            torch.manual_seed(seed % 2**63)
            self.tuner = tuner(model, config, _ADAPTER)
        if wanted != (found := set(self.tuner.targeted_module_names)):
            raise BrokenPromise(f"peft took other modules than it was given: {', '.join(sorted(wanted ^ found))}")
        for name, parameter in model.named_parameters():
            if ".ranknum." in name:  # a constant of AdaLoRA, which peft lets take gradients in half precision
                parameter.requires_grad_(False)
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}

    def merge_(self) -> None:
        """Put the updates into the weights."""
        self.tuner.merge_and_unload()


class Adaptive(Borrowed):
    """AdaLoRA: a companion of the training, which sheds ranks and adds the pull towards orthogonal factors."""

    def __init__(self, model: nn.Module, chosen: Chosen, settings: RecoverSettings, seed: int) -> None:
        super().__init__(model, chosen, settings, seed)
        self.settings = settings
        self.config: Any = self.tuner.peft_config[_ADAPTER]

    def penalty(self) -> Tensor:
        """Return gamma times the mean of |A A^T - I| and |B^T B - I| over all factors, Frobenius."""
        grams = [p @ p.t() if ".lora_A." in n else p.t() @ p for n, p in self.parameters.items() if ".lora_E." not in n]
        distances = [torch.linalg.matrix_norm(g - torch.eye(len(g), device=g.device)) for g in grams]
        return self.settings.orthogonality * torch.stack(distances).mean()

    def after_step(self, step: int) -> None:
        """Weigh every triplet by this step's gradients and zero what the budget of the step leaves out."""
        self.tuner.update_and_allocate(step)

    def state(self) -> dict[str, Tensor]:
        """Return the smoothed sensitivities and, once it stands, which triplets stay."""
        allocator = self.tuner.rankallocator
        found = {f"sensitivity.{n}": t for n, t in allocator.exp_avg_ipt.items()}
        found |= {f"uncertainty.{n}": t for n, t in allocator.exp_avg_unc.items()}
        return found | {f"kept.{n}": torch.tensor(k) for n, k in (self.config.rank_pattern or {}).items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` returned."""
        parts: dict[str, dict[str, Tensor]] = {"sensitivity": {}, "uncertainty": {}, "kept": {}}
        for key, tensor in state.items():
            kind, _, name = key.partition(".")
            parts[kind][name] = tensor
        allocator = self.tuner.rankallocator
        allocator.ipt = {n: torch.zeros_like(t) for n, t in parts["sensitivity"].items()}
        allocator.exp_avg_ipt, allocator.exp_avg_unc = parts["sensitivity"], parts["uncertainty"]
        self.config.rank_pattern = {n: t.tolist() for n, t in parts["kept"].items()} or None

    def ranks(self) -> dict[str, int]:
        """Return the rank of each linear's update.

        Raises:
            BrokenPromise: they exceed the budget, or no longer agree with the factors.
        """
        values = {n.partition(".lora_E.")[0]: p for n, p in self.parameters.items() if ".lora_E." in n}
        kept = {n.partition(".lora_E.")[0]: sum(k) for n, k in self.config.rank_pattern.items()}
        if sum(kept.values()) > self.settings.rank * len(values):
            raise BrokenPromise(f"{sum(kept.values())} ranks are left of a budget of {self.settings.rank} a linear")
        if wrong := [n for n, p in values.items() if int(p.count_nonzero()) > kept[n]]:
            raise BrokenPromise(f"{wrong[0]}: ranks that were shed are still there")
        return kept


def _of(chosen: Chosen, settings: RecoverSettings) -> tuple[Any, Any]:
    import peft

    linears = list(chosen.linears)
    match settings.method:
        case "ia3":
            return peft.IA3Model, peft.IA3Config(target_modules=linears, feedforward_modules=list(chosen.downs))
        case "hira":
            return peft.HiraModel, peft.HiraConfig(target_modules=linears, r=settings.rank)
        case "ln_tuning":
            modules = {n.rpartition(".")[0] for n in chosen.norms}
            return peft.LNTuningModel, peft.LNTuningConfig(target_modules=sorted(modules))
        case "adalora":
            return peft.AdaLoraModel, peft.AdaLoraConfig(
                target_modules=linears,
                target_r=settings.rank,
                init_r=settings.first_rank,
                lora_alpha=settings.scale * settings.first_rank,  # type: ignore[arg-type]  # divided by the first rank
                tinit=settings.steps // 10,
                tfinal=settings.settled,
                deltaT=max(settings.steps // 50, 1),
                total_step=settings.steps,
            )
    raise AssertionError(settings.method)
