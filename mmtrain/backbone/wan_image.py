"""What an image → video Wan is told of a clip's first frame, as `WanImageToVideoPipeline` of diffusers tells it.

Three ways, by the model's own config. Wan 2.1 sees the frame twice: as latents and a mask beside the noisy ones, and as
tokens of a CLIP image tower. Wan 2.2 of 14 B has the latents and the mask alone. In Wan 2.2 of 5 B the frame stands in
the place of the first latent frame, at time 0, and time is told by token.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, CLIPVisionModel

from mmtrain.backbone.schedule import wide
from mmtrain.backbone.weights import companion, load
from mmtrain.batch import to_bytes
from mmtrain.errors import UserError


class FirstFrame(nn.Module):
    """How a first frame is told.

    Args:
        in_place: in the place of the first latent frame; else beside all of them.
        tower: CLIP image tower whose tokens the network reads; None: it reads none.
        processor: of the tower.
    """

    def __init__(self, *, in_place: bool, tower: Any = None, processor: Any = None) -> None:
        super().__init__()
        self.in_place, self.tower, self.processor = in_place, tower, processor

    @torch.no_grad()
    def encode(self, vae: Any, frames: Tensor) -> dict[str, Tensor]:
        """What is frozen of a clip's first frame, by name.

        ``image_latents [b c t' h w]``, where they stand beside: unscaled, of a clip whose first frame alone is seen,
        grey after it. ``image_embeds [b n d]``, where there is a tower: what comes out of its last layer but one, of
        pictures that its own processor prepares, as the pipeline does; so this runs on the CPU.
        """
        found: dict[str, Tensor] = {}
        if not self.in_place:
            seen = torch.cat([frames[:, :1], torch.zeros_like(frames[:, 1:])], 1)
            found["image_latents"] = vae.encode(seen.transpose(1, 2)).latent_dist.mode()
        if self.tower is not None:
            pixels = self.processor(images=list(to_bytes(frames[:, 0])), return_tensors="pt").pixel_values
            states = self.tower(pixels.to(self.tower.device), output_hidden_states=True).hidden_states
            found["image_embeds"] = states[-2]
        return found

    def start(self, latents: Tensor, step: int) -> Tensor:
        """What the network is given, of scaled latents ``[b c t' h w]``: the first, or all behind a mask.

        The mask has ``step`` channels, one for each frame that a latent frame stands for: ones at the first, which is
        given, and zeros after it; ``[b step+c t' h w]`` in all.
        """
        if self.in_place:
            return latents[:, :, :1]
        mask = torch.zeros_like(latents[:, :1]).repeat(1, step, 1, 1, 1)
        mask[:, :, 0] = 1
        return torch.cat([mask, latents], 1)

    def given(self, noisy: Tensor, start: Tensor) -> Tensor:
        """The network's input of noisy latents and what `start` made."""
        return torch.cat([start, noisy[:, :, 1:]], 2) if self.in_place else torch.cat([noisy, start], 1)

    def led(self, velocity: Tensor, noisy: Tensor, level: Tensor, start: Tensor) -> Tensor:
        """The velocity; where the first latent frame is given, there the one that leads to it, which is known."""
        if not self.in_place:
            return velocity
        return torch.cat([(noisy[:, :, :1] - start) / wide(level, noisy), velocity[:, :, 1:]], 2)

    def encoded_size(self, latents: int) -> int:
        """Numbers that `encode` gives of a clip of so many latents."""
        tokens = sum(t.numel() for t in self.example(1, torch.device("meta")).values())
        return (0 if self.in_place else latents) + tokens

    def example(self, batch: int, where: Any) -> dict[str, Tensor]:
        """Tokens by shape alone, where there is a tower."""
        if self.tower is None:
            return {}
        config = self.tower.config
        count = (config.image_size // config.patch_size) ** 2 + 1
        return {"image_embeds": torch.empty(batch, count, config.hidden_size, device=where)}


def opened(path: str, revision: str | None, network: Any, *, in_place: bool) -> FirstFrame:
    """What stands in a folder for first frames, by the network's config.

    Raises:
        UserError: a network that wants a last frame too.
    """
    if network.pos_embed_seq_len is not None:
        raise UserError(f"backbone {path}", "a model of first and last frames", "one of first frames", "name another")
    if network.image_dim is None:
        return FirstFrame(in_place=in_place)
    unused = ("visual_projection.",)  # some folders hold the tower with its way into CLIP's shared space
    tower = load(CLIPVisionModel, path, "image_encoder", revision, unused=unused)
    processor = companion(CLIPImageProcessorPil, path, "image_processor", revision)
    return FirstFrame(in_place=in_place, tower=tower, processor=processor)


def times(time: Tensor, latents: Tensor, patch: tuple[int, int, int], *, given: bool) -> Tensor:
    """Times ``[b l]`` of the tokens into which latents ``[b c t' h w]`` are cut, from ``[b]``; 0 for those of the first
    latent frame where that is given."""
    _, _, count, height, width = latents.shape
    by_frame = time[:, None].repeat(1, count // patch[0])
    if given:
        by_frame[:, 0] = 0
    return by_frame.repeat_interleave((height // patch[1]) * (width // patch[2]), 1)
