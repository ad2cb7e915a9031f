"""OFT: weights turned by a block-diagonal rotation, which keeps the angles between neurons (Qiu et al. 2023), through
peft."""

from collections.abc import Sequence

from peft import OFTConfig
from torch import nn

from mmtrain.adapter.injected import Injected
from mmtrain.errors import UserError


class OFT(Injected):
    """OFT on the linear layers and plain convolutions that patterns or a preset name.

    Args:
        block: size of a rotation's blocks; divides the inputs of every layer.
        targets: shell patterns over module names of the backbone's network, or one of its presets.
    """

    name = "oft"
    kinds = (nn.Linear, nn.Conv2d)

    def __init__(self, *, block: int, targets: Sequence[str] | str) -> None:
        super().__init__(targets=targets)
        if block < 2:
            raise UserError("adapter oft", f"block {block}", "at least 2", "correct it")
        self.block = block

    def config(self, layers: list[str]) -> OFTConfig:
        return OFTConfig(
            r=0, oft_block_size=self.block, target_modules=layers, init_weights=True, use_cayley_neumann=False
        )
