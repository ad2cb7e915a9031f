"""Size distillation: a smaller network learns from a larger one's outputs and features (Kim et al. 2023, BK-SDM).

Told a guidance, it learns what the teacher says guided (Meng et al. 2023, their first stage at one weight): one pass in
the place of the teacher's two, so it is sampled at guidance 1.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from mmtrain.backbone import schedule
from mmtrain.batch import Batch, Loss
from mmtrain.errors import UserError
from mmtrain.objective.levels import LogitNormal
from mmtrain.rng import Rng


class FromTeacher(nn.Module):
    """Denoising, the teacher's prediction and the teacher's features, all at one drawn level.

    Args:
        teacher: a backbone with the same codec and conditioning, frozen.
        task, output, features: weights of the three terms.
        blocks: shell patterns over modules that both networks have; what they give is compared.
        drop_text: chance that a caption is replaced by the empty one.
        guidance: of the teacher's prediction; 1 is none. Guided, it is no estimate of the noise that was drawn, and the
            student has no use for empty captions: ``task`` and ``drop_text`` must be 0.
        levels: how noise levels are drawn; None: as the family's paper does.

    Raises:
        UserError: a guided teacher beside the task or empty captions.
    """

    def __init__(
        self,
        *,
        teacher: nn.Module,
        task: float = 1.0,
        output: float = 1.0,
        features: float = 1.0,
        blocks: list[str],
        drop_text: float = 0.1,
        guidance: float = 1.0,
        levels: LogitNormal | None = None,
    ) -> None:
        super().__init__()
        if guidance != 1 and (task or drop_text):
            came = f"guidance {guidance:g} beside task {task:g} and drop_text {drop_text:g}"
            raise UserError("objective", came, "a guided teacher alone", "set task and drop_text to 0")
        self.teacher: Any = teacher
        self.task, self.output, self.features = task, output, features
        self.blocks, self.drop_text, self.guidance, self.levels = blocks, drop_text, guidance, levels

    def forward(self, backbone: Any, batch: Batch, rng: Rng) -> Loss:
        """Loss per sample ``[b]``.

        Raises:
            UserError: a teacher of other latents, or blocks that do not match.
        """
        encoded = batch.encoded if batch.encoded else backbone.encode(batch.frames)
        latents = backbone.draw_latents(encoded, rng)
        drop, keep = rng.chance("drop text", self.drop_text), torch.zeros(len(batch), dtype=torch.bool)
        fractions = rng.spread("level")
        level = backbone.schedule.at(self.levels(fractions) if self.levels else fractions).to(latents.device)
        noise = rng.normal("noise", latents.shape[1:]).to(latents.device)
        signal = backbone.schedule.signal(level)
        noisy = schedule.mix(latents, noise, *signal)
        with features_of(backbone.network, self.blocks) as own:
            condition = backbone.condition(encoded, batch.captions, drop_text=drop, drop_image=keep)
            prediction = backbone.predict(noisy, level, condition)
        with torch.no_grad():
            condition = self.teacher.condition(encoded, batch.captions, drop_text=drop, drop_image=keep)
            with features_of(self.teacher.network, self.blocks) as taught:
                shown = self.teacher.predict(noisy, level, condition)
            if self.guidance != 1:
                condition = self.teacher.condition(encoded, batch.captions, drop_text=~keep, drop_image=keep)
                away = self.teacher.predict(noisy, level, condition)
                shown = away + self.guidance * (shown - away)
            shown = self.translated(backbone, shown, noisy, level)
        wanted = schedule.target(backbone.schedule.kind, latents, noise, *signal)
        terms = {
            "denoise": (self.task, _squared(prediction - wanted)),
            "output": (self.output, _squared(prediction - shown)),
            "features": (self.features, compared(own, taught)),
        }
        per_sample = torch.stack([weight * term for weight, term in terms.values()]).sum(0)
        return Loss(per_sample, {name: term.detach().mean() for name, (_, term) in terms.items()})

    def translated(self, backbone: Any, prediction: Tensor, noisy: Tensor, level: Tensor) -> Tensor:
        """The teacher's prediction as the student would have made it.

        Raises:
            UserError: the two have other noise schedules or latents.
        """
        taught, own = self.teacher.schedule, backbone.schedule
        alike = self.teacher.encoder_id == backbone.encoder_id
        if not alike or not torch.equal(taught.kept, own.kept):
            came = "another codec" if not alike else "another noise schedule"
            raise UserError("objective.teacher", came, "the student's own", "choose a teacher of the same latents")
        signal = taught.signal(level)
        x = schedule.denoised(taught.kind, prediction, noisy, *signal)
        noise = schedule.noise_of(taught.kind, prediction, noisy, *signal)
        return prediction if taught.kind == own.kind else schedule.target(own.kind, x, noise, *signal)


def _squared(difference: Tensor) -> Tensor:
    return difference.square().flatten(1).mean(1)


@contextmanager
def features_of(network: nn.Module, patterns: list[str]) -> Iterator[dict[str, Tensor]]:
    """Collects what the modules that patterns name give, ``[b …]`` by name, while it is open."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            found[name] = output[0] if isinstance(output, tuple) else output

        return hook

    named = {n: m for n, m in network.named_modules() if any(fnmatchcase(n, p) for p in patterns)}
    hooks = [module.register_forward_hook(keep(name)) for name, module in named.items()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def compared(own: dict[str, Tensor], taught: dict[str, Tensor]) -> Tensor:
    """Squared difference of features over the teacher's mean square, averaged over blocks, ``[b]``.

    Raises:
        UserError: the networks have no such blocks in common, or of other shapes.
    """
    names = sorted(own.keys() & taught.keys())
    wrong = [name for name in names if own[name].shape != taught[name].shape]
    if not names or wrong:
        came = f"{wrong[0]} gives other shapes" if wrong else "no block that both networks have"
        raise UserError("objective.blocks", came, "blocks of the same shape in both", "choose other patterns")
    ratios = [_squared(own[n] - taught[n]) / taught[n].square().mean() for n in names]
    return torch.stack(ratios).mean(0)
