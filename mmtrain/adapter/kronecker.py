"""LoKr: a weight's update as a Kronecker product, C ⊗ (B·A) (Yeh et al. 2024, LyCORIS), through peft."""

from collections.abc import Sequence

from peft import LoKrConfig
from torch import nn

from mmtrain.adapter.injected import Injected
from mmtrain.errors import UserError


class LoKr(Injected):
    """LoKr on the linear layers and plain convolutions that patterns or a preset name.

    Args:
        rank: of the larger factor.
        alpha: the update is scaled by alpha / rank.
        targets: shell patterns over module names of the backbone's network, or one of its presets.
        factor: size of the smaller factor; −1 makes the two as alike as they go.
        both: whether the smaller factor is low-rank too.
    """

    name = "lokr"
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d)

    def __init__(
        self, *, rank: int, alpha: float, targets: Sequence[str] | str, factor: int = -1, both: bool = False
    ) -> None:
        super().__init__(targets=targets)
        if rank < 1 or alpha <= 0:
            raise UserError("adapter lokr", f"rank {rank}, alpha {alpha}", "rank ≥ 1 and alpha > 0", "correct them")
        self.rank, self.alpha, self.factor, self.both = rank, alpha, factor, both

    def config(self, layers: list[str]) -> LoKrConfig:
        return LoKrConfig(
            r=self.rank,
            alpha=self.alpha,
            target_modules=layers,
            decompose_factor=self.factor,
            decompose_both=self.both,
            init_weights=True,
        )
