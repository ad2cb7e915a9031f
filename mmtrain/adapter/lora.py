"""Low-rank adapters on any network (Hu et al. 2021), through peft: W + (α / r)·B·A with B = 0 at the start; with
``dora`` its direction alone, and each row's length apart (Liu et al. 2024)."""

import re
from collections.abc import Sequence
from typing import Any, Literal

from peft import LoraConfig
from torch import nn

from mmtrain.adapter.injected import Injected
from mmtrain.errors import UserError


class LoRA(Injected):
    """LoRA on the linear layers and convolutions that patterns or a preset name.

    Args:
        rank: r.
        alpha: α; the update is scaled by α / r.
        targets: shell patterns over module names of the backbone's network, or one of its presets.
        dropout: chance that an input of the update is left out while training; drawn by (seed, step, sample).
        dora: split each weight into length and direction, and adapt both.
        init: of A: ``kaiming`` (Hu et al.'s) or ``gaussian``; B is zero.
        rank_pattern, alpha_pattern: regular expressions over module names, and the r or α of the layers they match.
    """

    name = "lora"
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

    def __init__(
        self,
        *,
        rank: int,
        alpha: float,
        targets: Sequence[str] | str,
        dropout: float = 0.0,
        dora: bool = False,
        init: Literal["kaiming", "gaussian"] = "kaiming",
        rank_pattern: dict[str, int] | None = None,
        alpha_pattern: dict[str, float] | None = None,
    ) -> None:
        super().__init__(targets=targets)
        if rank < 1 or alpha <= 0:
            raise UserError("adapter lora", f"rank {rank}, alpha {alpha}", "rank ≥ 1 and alpha > 0", "correct them")
        self.rank, self.alpha, self.dropout, self.dora, self.init = rank, alpha, dropout, dora, init
        self.rank_pattern, self.alpha_pattern = dict(rank_pattern or {}), dict(alpha_pattern or {})

    def config(self, layers: list[str]) -> LoraConfig:
        self._all_match(layers)
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=layers,
            use_dora=self.dora,
            init_lora_weights=True if self.init == "kaiming" else "gaussian",
            rank_pattern=self.rank_pattern,
            alpha_pattern=self.alpha_pattern,
        )

    def _all_match(self, layers: list[str]) -> None:
        """peft leaves a pattern of no layer without a word."""
        given: dict[str, Any] = {**self.rank_pattern, **self.alpha_pattern}
        for pattern in given:
            if not any(re.fullmatch(rf"(.*\.)?({pattern})", layer) for layer in layers):
                came = f"{pattern!r} matches none of its {len(layers)} layers"
                raise UserError(
                    "adapter lora", came, f"names like {layers[0]}", "correct rank_pattern or alpha_pattern"
                )
