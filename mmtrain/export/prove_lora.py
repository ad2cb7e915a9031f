"""The proof of a LoRA's file: in a clean process the library that will use it loads it on the base, every tensor of the
file is in the network and no other is, and the network gives what the trained one gives. Its other side: `vanilla.py`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmtrain.backbone.sd import StableDiffusion
from mmtrain.export.lora import NETWORKS, Layout
from mmtrain.export.prove import SEED, Case, Proof, ask_vanilla, refused
from mmtrain.sample.generate import evaluating

LIMITS = {torch.float32: 1e-4, torch.float16: 1e-2}
"""How far the network's outputs may be apart, of their own deviation."""
_SIDE, _FRAMES, _TOKENS = 8, 2, 3


def prove_lora(backbone: Any, file: Path, layout: Layout, dtype: torch.dtype) -> Proof:
    """Load a LoRA in a clean process, and compare the network's output with the trained one's.

    Args:
        backbone: the trained model, LoRA attached and not folded.
        file: what `write_lora` wrote.
        layout: of which program.
        dtype: of its weights.

    Raises:
        UserError: it does not load, a key is missing or left over, or the output differs.
    """
    shapes = _inputs(backbone)
    ask = {"kind": "lora", "layout": layout, "file": str(file.resolve()), "inputs": shapes}
    ask |= {"base": backbone.path, "network": NETWORKS[type(backbone)]}
    with torch.no_grad(), evaluating(backbone):
        wanted = backbone.network(**_drawn(shapes)).sample.numpy()
    got, _ = ask_vanilla(Case(ask, wanted, {}), file.parent)
    apart = np.abs(got - wanted) / wanted.std()
    proof = Proof(mean=float(apart.mean()), most=float(apart.max()))
    if not proof.most <= LIMITS[dtype]:
        raise refused(file.parent, f"its network's output is {proof.most:.3g} deviations away from the trained one's")
    return proof


def _inputs(backbone: Any) -> dict[str, list[int]]:
    """Shapes of what the network is given, by argument; both sides draw them from the same seed."""
    config = backbone.network.config
    if isinstance(backbone, StableDiffusion):
        sample = [1, config.in_channels, _SIDE, _SIDE]
        return {"sample": sample, "encoder_hidden_states": [1, _TOKENS, config.cross_attention_dim]}
    sample = [1, _FRAMES, config.in_channels, _SIDE, _SIDE]
    more = {"encoder_hidden_states": [1, 1, config.cross_attention_dim], "added_time_ids": [1, 3]}
    return {"sample": sample, **more}


def _drawn(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    drawn = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {**drawn, "timestep": torch.tensor(7)}
