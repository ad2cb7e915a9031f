"""SigLIP's loss: every pair of a picture and a caption is a question of its own, answered yes or no."""

from typing import Any

from torch import Tensor

from mmtrain.errors import UserError
from mmtrain.objective.tiles import Compared, Names, sigmoid
from mmtrain.objective.whole import WholeBatch, limited


class SigLIP(WholeBatch):
    """−(1/B) Σ log σ(z(s·cos + b)) over all pairs of the batch, of all ranks (Zhai et al. 2023, algorithm 1).

    Pairs that share a caption or a picture are positives (z = 1). The temperature and the bias are the backbone's; from
    scratch they start at s = 10 and b = −10, since nearly all pairs are negatives (`adapter/temperature_siglip`).
    """

    def compare(self, backbone: Any, shown: Tensor, said: Tensor, names: Names) -> Compared:
        if backbone.bias is None:
            fix = "add `- /adapter@adapters.temperature: temperature_siglip` to the recipe's defaults"
            raise UserError("objective siglip", "a backbone without a bias", "s·cos + b for each pair", fix)
        scale, bias = limited(backbone.log_scale).to(shown.dtype), backbone.bias.to(shown.dtype)
        return sigmoid(shown, said, scale, bias, names, self.tile)
