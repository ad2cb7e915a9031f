"""VQ codecs (van den Oord et al. 2017; Esser et al. 2021): pixels to the nearest vectors of a codebook and back.

KL codecs are in `codec.py`; one objective, `Reconstruct`, trains both.
"""

import torch
from diffusers import VQModel
from torch import Tensor, nn

from mmtrain.backbone.codec import Codec
from mmtrain.backbone.weights import freeze, load


class VQCodec(Codec):
    """A VQ codec by hub id or local folder, frozen on arrival.

    Args:
        path: hub id or folder of a `VQModel`.
        subfolder: the codec's part of a pipeline folder.
        revision: git revision of a hub id.
    """

    def __init__(self, *, path: str, subfolder: str | None = None, revision: str | None = None) -> None:
        super().__init__()
        self._hold(load(VQModel, path, subfolder, revision), path)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> dict[str, Tensor]:
        """Latents of a clip before they are quantised, ``[b t c h w]``."""
        b, t = frames.shape[:2]
        return {"latents": self.model.encode(frames.flatten(0, 1)).latents.unflatten(0, (b, t))}

    def reconstruct(self, frames: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Frames ``[b t c h w]`` through the codebook and back, and what pulls codebook and latents to each other,
        ``[b]``: |sg(z) − e|² + β·|z − sg(e)|² as the library weighs them. A codebook draws nothing from ``noise``."""
        b, t = frames.shape[:2]
        latents = self.model.encode(frames.flatten(0, 1)).latents
        output = self.model.decode(latents)
        return output.sample.unflatten(0, (b, t)), output.commit_loss.expand(b)


def fresh(*, channels: list[int], latent_channels: int, layers: int, groups: int, side: int, codes: int) -> VQCodec:
    """An untrained VQ codec.

    Args:
        channels: of each level; a level halves the resolution, save the last.
        latent_channels: of the latents and of a code.
        layers: residual blocks per level.
        groups: of the group norms.
        side: of the training images in pixels.
        codes: of the codebook.
    """
    model = VQModel(
        block_out_channels=tuple(channels),
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        latent_channels=latent_channels,
        layers_per_block=layers,
        norm_num_groups=groups,
        sample_size=side,
        num_vq_embeddings=codes,
    )
    codec = VQCodec.__new__(VQCodec)
    nn.Module.__init__(codec)
    codec._hold(freeze(model), "fresh")
    return codec
