"""Fairness: what a model shows when a prompt leaves an attribute open is drawn towards a stated distribution.

Two ways that go together. *Open captions*: the words that tell the attribute are left out of some captions, so that the
model learns to show it as the data has it, whose shares `dataset=mixture` can even out. *Alignment*, after Shen
et al. 2024: a frozen CLIP reads the attribute off pictures that the model draws in a few steps from pure noise, and the
mean of its probabilities over a batch is compared with the wanted ones; the gradient goes through all of these steps.
"""

import dataclasses
import re
from itertools import pairwise
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
        judge: a CLIP, frozen: which of ``classes`` a picture shows. None where nothing is drawn.
        prompt: names no class.
        classes: a caption for each value of the attribute.
        shares: of each class that is wanted; None: all the same.
        weight: of the divergence; at 0 nothing is drawn.
        steps: of the drawing, by DDIM. Each pass of the network is kept for the gradient, two a step where guided.
        guidance: of the drawing; 1 is none. As the model will be sampled: guidance makes an uneven choice far more so.
        words: that tell the attribute and are left out of captions, whatever their case.
        drop_words: chance that a caption is left open so.

    Attributes:
        decodes: a step may ask the codec.
    """

    decodes = True

    def __init__(
        self,
        *,
        denoise: Denoise,
        judge: nn.Module | None,
        prompt: str,
        classes: list[str],
        shares: list[float] | None = None,
        weight: float = 0.1,
        steps: int = 4,
        guidance: float = 1.0,
        words: list[str] | None = None,
        drop_words: float = 0.0,
    ) -> None:
        super().__init__()
        wanted = [1.0 / len(classes)] * len(classes) if shares is None else shares
        if len(classes) < 2 or len(wanted) != len(classes) or min(wanted) < 0 or abs(sum(wanted) - 1) > 1e-6:
            came = f"{len(classes)} classes, shares {wanted}"
            raise UserError("objective", came, "two classes or more, and shares that sum to 1", "correct them")
        if steps < 1 or weight < 0:
            raise UserError("objective", f"steps {steps}, weight {weight:g}", "steps ≥ 1, weight ≥ 0", "correct them")
        if weight and judge is None:
            raise UserError("objective.judge", f"null at weight {weight:g}", "a CLIP", "name one, or set weight to 0")
        if not 0 <= drop_words <= 1 or (drop_words > 0) != bool(words):
            came = f"drop_words {drop_words:g} and {len(words or [])} words"
            raise UserError("objective", came, "a chance, and the words to leave out by it", "give both or neither")
        self.denoise, self.prompt, self.classes = denoise, prompt, classes
        self.judge: Any = judge
        self.wanted, self.weight, self.count, self.guidance = wanted, weight, steps, guidance
        self.words, self.drop_words = words or [], drop_words

    def forward(self, backbone: Any, batch: Batch, rng: Rng) -> Loss:
        """Loss per sample ``[b]``: the divergence is of the batch, and the same for each."""
        loss: Loss = self.denoise(backbone, self.opened(batch, rng), rng)
        if not self.weight:
            return loss
        encoded = batch.encoded if batch.encoded else backbone.encode(batch.frames)
        shares = self.probabilities(self.shown(backbone, encoded, rng)).mean(0)
        apart = divergence(shares, torch.tensor(self.wanted, device=shares.device))
        logs = {**loss.logs, "unfair": apart.detach()}
        logs |= {f"share of {name}": share for name, share in zip(self.classes, shares.detach(), strict=True)}
        return Loss(loss.per_sample + self.weight * apart, logs)

    def opened(self, batch: Batch, rng: Rng) -> Batch:
        """The batch with the attribute's words left out of some captions."""
        if not self.drop_words:
            return batch
        chosen = zip(batch.captions, rng.chance("drop words", self.drop_words).tolist(), strict=True)
        return dataclasses.replace(batch, captions=[open_caption(c, self.words) if out else c for c, out in chosen])

    def shown(self, backbone: Any, encoded: dict[str, Tensor], rng: Rng) -> Tensor:
        """Pictures ``[b c h w]`` that the model draws from noise, told the open prompt; as large as the batch's."""
        like = backbone.draw_latents(encoded, rng)
        b, all_ = len(like), torch.ones(len(like), dtype=torch.bool)
        condition, away = (
            backbone.condition(encoded, [self.prompt] * b, drop_text=drop, drop_image=~all_) for drop in (~all_, all_)
        )
        ends = torch.arange(self.count, 0, -1, dtype=torch.float64) / self.count - 1e-6  # DDIM's "trailing" timesteps
        levels = [backbone.schedule.at(end.expand(b)).to(like.device) for end in ends]
        noisy = rng.normal("fair noise", like.shape[1:]).to(like.device)
        for here, there in pairwise([*levels, None]):
            prediction = backbone.predict(noisy, here, condition)
            if self.guidance != 1:
                unguided = backbone.predict(noisy, here, away)
                prediction = unguided + self.guidance * (prediction - unguided)
            kind, signal = backbone.schedule.kind, backbone.schedule.signal(here)
            x = schedule.denoised(kind, prediction, noisy, *signal)
            if there is not None:
                e = schedule.noise_of(kind, prediction, noisy, *signal)
                noisy = schedule.mix(x, e, *backbone.schedule.signal(there))
        pixels: Tensor = backbone.vae.decode(x / backbone.vae.config.scaling_factor).sample
        return pixels.clamp(-1, 1)

    def probabilities(self, pictures: Tensor) -> Tensor:
        """Of each class, ``[b n]``: CLIP's, at its own temperature."""
        images, texts = self.judge.embed_images(pictures), self.judge.embed_text(self.classes)
        images, texts = (nn.functional.normalize(side, dim=-1) for side in (images, texts))
        scale: Tensor = self.judge.log_scale
        return (scale.detach().exp() * images @ texts.T).softmax(-1)


def divergence(shares: Tensor, wanted: Tensor) -> Tensor:
    """KL(shares ‖ wanted) in nats; a class that is not wanted at all counts by its logarithm at 1e-6."""
    return (shares * (shares.clamp(min=1e-12).log() - wanted.clamp(min=1e-6).log())).sum()


def open_caption(caption: str, words: list[str]) -> str:
    """A caption without some words, whole ones, whatever their case; an article before them is that of what follows,
    and spaces stay single."""
    told = "|".join(re.escape(word) for word in words)

    def without(found: re.Match[str]) -> str:
        article, following = found["article"], caption[found.end() : found.end() + 1]
        if not article:
            return " "
        return f" {article[0]}{'n' * (following.lower() in tuple('aeiou'))} "

    return " ".join(
        re.sub(rf"(?:\b(?P<article>an?)\s+)?(?:\b(?:{told})\b\s*)+", without, caption, flags=re.IGNORECASE).split()
    )
