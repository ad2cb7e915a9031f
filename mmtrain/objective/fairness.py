"""Fairness: what a model shows when a prompt leaves an attribute open is drawn towards a stated distribution.

After the distribution alignment of Shen et al. 2024: a frozen CLIP reads the attribute off the model's own clean
estimate, and the mean of its probabilities over a batch is compared with the wanted ones.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mmtrain.backbone import schedule
from mmtrain.batch import Batch, Loss
from mmtrain.errors import UserError
from mmtrain.objective.denoise import Denoise
from mmtrain.rng import Rng


class Fair(nn.Module):
    """Denoising, and a divergence between shown and wanted shares of an attribute.

    Args:
        denoise: the denoising loss that keeps the model what it is.
        judge: a CLIP, frozen: which of ``classes`` a picture shows.
        prompt: names no class.
        classes: a caption for each value of the attribute.
        shares: of each class that is wanted; None: all the same.
        weight: of the divergence.
        level: share of the schedule at which the clean estimate is taken, between 0 (clean) and 1 (noise).

    Attributes:
        decodes: a step asks the codec.
    """

    decodes = True

    def __init__(
        self,
        *,
        denoise: Denoise,
        judge: nn.Module,
        prompt: str,
        classes: list[str],
        shares: list[float] | None = None,
        weight: float = 0.1,
        level: float = 0.7,
    ) -> None:
        super().__init__()
        wanted = [1.0 / len(classes)] * len(classes) if shares is None else shares
        if len(classes) < 2 or len(wanted) != len(classes) or min(wanted) < 0 or abs(sum(wanted) - 1) > 1e-6:
            came = f"{len(classes)} classes, shares {wanted}"
            raise UserError("objective", came, "two classes or more, and shares that sum to 1", "correct them")
        if not 0 < level < 1:
            raise UserError("objective.level", str(level), "between 0 and 1", "try 0.7")
        self.denoise, self.judge, self.prompt, self.classes = denoise, judge, prompt, classes
        self.wanted, self.weight, self.level = wanted, weight, level

    def forward(self, backbone: Any, batch: Batch, rng: Rng) -> Loss:
        """Loss per sample ``[b]``: the divergence is of the batch, and the same for each."""
        loss = self.denoise(backbone, batch, rng)
        encoded = batch.encoded if batch.encoded else backbone.encode(batch.frames)
        shares = self.probabilities(self.shown(backbone, encoded, rng)).mean(0)
        apart = divergence(shares, torch.tensor(self.wanted, device=shares.device))
        logs = {**loss.logs, "unfair": apart.detach()}
        logs |= {f"share of {name}": share for name, share in zip(self.classes, shares.detach(), strict=True)}
        return Loss(loss.per_sample + self.weight * apart, logs)

    def shown(self, backbone: Any, encoded: dict[str, Tensor], rng: Rng) -> Tensor:
        """Pictures ``[b c h w]`` that the model takes noisy latents for, told the open prompt."""
        latents = backbone.draw_latents(encoded, rng)
        b, drop = len(latents), torch.zeros(len(latents), dtype=torch.bool)
        condition = backbone.condition(encoded, [self.prompt] * b, drop_text=drop, drop_image=drop)
        level = backbone.schedule.at(torch.full((b,), self.level, dtype=torch.float64)).to(latents.device)
        signal = backbone.schedule.signal(level)
        noise = rng.normal("fair noise", latents.shape[1:]).to(latents.device)
        noisy = schedule.mix(latents, noise, *signal)
        x = schedule.denoised(backbone.schedule.kind, backbone.predict(noisy, level, condition), noisy, *signal)
        pixels: Tensor = backbone.vae.decode(x / backbone.vae.config.scaling_factor).sample
        return pixels.clamp(-1, 1)

    def probabilities(self, pictures: Tensor) -> Tensor:
        """Of each class, ``[b n]``: CLIP's, at its own temperature."""
        images, texts = self.judge.embed_images(pictures), self.judge.embed_text(self.classes)  # type: ignore[operator]
        images, texts = (nn.functional.normalize(side, dim=-1) for side in (images, texts))
        scale: Tensor = self.judge.log_scale  # type: ignore[assignment]
        return (scale.detach().exp() * images @ texts.T).softmax(-1)


def divergence(shares: Tensor, wanted: Tensor) -> Tensor:
    """KL(shares ‖ wanted) in nats; a class that is not wanted at all counts by its logarithm at 1e-6."""
    return (shares * (shares.clamp(min=1e-12).log() - wanted.clamp(min=1e-6).log())).sum()
