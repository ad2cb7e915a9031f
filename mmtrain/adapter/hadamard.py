"""LoHa: a weight's update as the elementwise product of two low-rank ones (Hyeon-Woo et al. 2022), through peft."""

from collections.abc import Sequence

from peft import LoHaConfig
from torch import nn

from mmtrain.adapter.injected import Injected
from mmtrain.errors import UserError


class LoHa(Injected):
    """LoHa on the linear layers and plain convolutions that patterns or a preset name.

    Args:
        rank: of each factor; the product's is up to its square.
        alpha: the update is scaled by alpha / rank.
        targets: shell patterns over module names of the backbone's network, or one of its presets.
    """

    name = "loha"
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d)

    def __init__(self, *, rank: int, alpha: float, targets: Sequence[str] | str) -> None:
        super().__init__(targets=targets)
        if rank < 1 or alpha <= 0:
            raise UserError("adapter loha", f"rank {rank}, alpha {alpha}", "rank ≥ 1 and alpha > 0", "correct them")
        self.rank, self.alpha = rank, alpha

    def config(self, layers: list[str]) -> LoHaConfig:
        return LoHaConfig(r=self.rank, alpha=self.alpha, target_modules=layers, init_weights=True)
