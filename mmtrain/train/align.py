"""Before the first step: a bridge's codes of captions are drawn to the clips that the captions describe.

Symmetric InfoNCE between a caption's code and a small reader of cached latents, which is thrown away afterwards. It
costs seconds, because no frozen network runs; the same told to a denoiser, by its loss alone, costs thousands of steps.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtrain.data.stream import Stream
from mmtrain.errors import UserError
from mmtrain.objective.contrastive import symmetric
from mmtrain.objective.denoise import ALIGNMENT_LOG_SCALE
from mmtrain.rng import Rng, key

RIDGE = 0.01  # of the variance of what is seen
SHIFT = 3  # sixteenths of a side
QUIET = 0.3  # of the mean variance of what is said; directions far below it are wording


class Align:
    """Aligns a bridge's caption codes with clips.

    Args:
        steps: of AdamW.
        batch_size: pairs compared at a time.
        samples: clips that are held in memory for it, evenly from the whole source; all, if there are fewer.
        lr: learning rate, constant.
    """

    def __init__(self, *, steps: int, batch_size: int, samples: int, lr: float) -> None:
        if steps < 1 or batch_size < 2 or samples < 2:
            came = f"steps {steps}, batch_size {batch_size}, samples {samples}"
            raise UserError("align", came, "at least one step, of two pairs", "give larger numbers")
        self.steps, self.batch_size, self.samples, self.lr = steps, batch_size, samples, lr

    def __call__(self, backbone: Any, source: Stream, seed: int) -> dict[str, float]:
        """Fill the bridge's code; what is drawn depends on the seed alone.

        Returns:
            Of the last step: ``loss``, and ``recall@1`` from clips to captions.

        Raises:
            UserError: no bridge, no cached latents, or latents of single frames.
        """
        bridge = backbone.bridge
        if bridge is None:
            raise UserError("align", "a run without a bridge", "one, whose codes to align", "add it, or set align=null")
        encoded, captions = self._clips(source, seed)
        text = backbone.text(captions)
        latents = encoded["latents"]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key(seed, "align"))
            reader = Reader(channels=latents.shape[2], code=bridge.code_width)
        bridge.say.requires_grad_(True)
        log_scale = nn.Parameter(torch.tensor(ALIGNMENT_LOG_SCALE))
        weights = [*reader.parameters(), *bridge.say.parameters(), log_scale]
        optimizer = torch.optim.AdamW(weights, lr=self.lr, betas=(0.9, 0.99), fused=True)
        for step in range(self.steps):
            rng = Rng(seed, step, range(step * self.batch_size, (step + 1) * self.batch_size))
            chosen = (rng.uniform("align") * len(captions)).long()
            clips = backbone.draw_latents({name: part[chosen] for name, part in encoded.items()}, rng)
            shown = reader(shifted(clips, rng))
            said = bridge.direction(text.rows(chosen))
            loss = symmetric(shown, said, log_scale).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        bridge.say.requires_grad_(False)
        with torch.no_grad():
            said_of_all = bridge.direction(text)
            bridge.usual.copy_(said_of_all.mean(0))
            bridge.news.copy_(news(said_of_all, encoded["image_embeds"]))
            hits = (F.normalize(shown, dim=-1) @ said.T).argmax(1) == torch.arange(len(chosen))
        return {"loss": float(loss.detach()), "recall@1": float(hits.float().mean())}

    def _clips(self, source: Stream, seed: int) -> tuple[dict[str, Tensor], list[str]]:
        """First, middle and last latents of clips, and a caption of each."""
        if source.kind != "encoded":
            raise UserError("align", "a run without cached latents", "a cache", "set cache=<folder>, or align=null")
        count = min(self.samples, len(source))
        bad: dict[int, Any] = {}
        rows = [source.row(i * len(source) // count, seed, i, bad) for i in range(count)]
        frames = rows[0].encoded["latents"].shape[0]
        if frames < 2:
            raise UserError("align", "latents of single frames", "clips", "raise dataset.num_frames, or set align=null")
        few = [0, frames // 2, frames - 1]
        encoded = {n: torch.stack([row.encoded[n][few] for row in rows]) for n in ("latents", "latents_std")}
        encoded["image_embeds"] = torch.stack([row.encoded["image_embeds"] for row in rows])
        return encoded, [row.caption for row in rows]


def news(said: Tensor, seen: Tensor) -> Tensor:
    """The linear map ``[k k]`` that leaves of what captions say, ``[n k]``, what first frames ``[n d]`` do not show.

    R·(S + εI)⁻¹, with S the covariance of what is said and R that of its rest after a ridge regression on what is seen:
    a direction counts by the share of it that is news, and one in which captions hardly differ, as wording, does not.
    What is left has a mean square norm of one, as unit vectors have.
    """
    said, seen = said.double() - said.double().mean(0), seen.double()
    seen = (seen - seen.mean(0)) / seen.std(0).clamp(min=1e-6)
    n, k, d = len(said), said.shape[1], seen.shape[1]
    shown = torch.linalg.solve(seen.T @ seen + RIDGE * n * torch.eye(d).to(seen), seen.T @ said)
    rest = said - seen @ shown
    every, new = said.T @ said / n, rest.T @ rest / n
    level = (QUIET * every.trace() / k + 1e-12) * torch.eye(k).to(said)
    found = new @ torch.linalg.inv(every + level)
    kept = (found @ every @ found.T).trace()
    return (found / kept.clamp(min=1e-12).sqrt()).to(torch.float32)


def shifted(latents: Tensor, rng: Rng) -> Tensor:
    """Clips ``[b t c h w]``, each shifted by up to 3/16 of its side as if the picture went on at its edges: where
    things are is not to be learned by heart, and a few hundred clips are enough."""
    reach = max(1, SHIFT * latents.shape[-1] // 16)
    padded = F.pad(latents.flatten(1, 2), (reach,) * 4, mode="replicate")
    h, w = latents.shape[-2:]
    places = ((rng.uniform(axis) * (2 * reach + 1)).long().tolist() for axis in ("shift y", "shift x"))
    moved = [clip[:, y : y + h, x : x + w] for clip, y, x in zip(padded, *places, strict=True)]
    return torch.stack(moved).unflatten(1, latents.shape[1:3])


class Reader(nn.Module):
    """Three latents of a clip ``[b 3 c h w]``, scaled to unit variance → a vector ``[b k]``: the first frame, and what
    has changed since, wherever it is."""

    def __init__(self, *, channels: int, code: int, width: int = 48) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3 * channels, width, 3, 2, 1),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1),
            nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, 1, 1),
            nn.SiLU(),
        )
        self.out = nn.Sequential(nn.Linear(4 * width, 256), nn.SiLU(), nn.Linear(256, code))

    def forward(self, latents: Tensor) -> Tensor:
        first, middle, last = latents.unbind(1)
        found = self.net(torch.cat([first, middle - first, last - first], 1))
        return self.out(torch.cat([found.mean((2, 3)), found.amax((2, 3))], 1))
