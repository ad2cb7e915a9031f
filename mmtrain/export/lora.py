"""A LoRA in the layouts of the programs that load one: peft's folder, diffusers' file, ComfyUI's file.

Names and shapes only; the proof that those programs' libraries open them is `prove_lora.py`.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from mmtrain.adapter.lora import LoRA
from mmtrain.backbone.sd import StableDiffusion
from mmtrain.backbone.svd import StableVideoDiffusion
from mmtrain.errors import UserError

Layout = Literal["peft", "diffusers", "comfyui"]
PEFT, DIFFUSERS, COMFYUI = "adapter_model.safetensors", "pytorch_lora_weights.safetensors", "comfyui_lora.safetensors"

NETWORKS: dict[type, str] = {
    StableDiffusion: "UNet2DConditionModel",
    StableVideoDiffusion: "UNetSpatioTemporalConditionModel",
}
"""Backbones whose network carries a LoRA, with diffusers' class of it."""

_COMFYUI_LAYERS = re.compile(
    r"(?:down_blocks|mid_block|up_blocks)\.(?:\d+\.)?(?:"
    r"attentions\.\d+\.(?:proj_in|proj_out|transformer_blocks\.\d+\."
    r"(?:attn[12]\.to_(?:q|k|v|out\.0)|ff\.net\.(?:0\.proj|2)))"
    r"|resnets\.\d+\.(?:conv1|conv2|conv_shortcut|time_emb_proj)|(?:down|up)samplers\.0\.conv)"
    r"|conv_in|conv_out|time_embedding\.linear_[12]"
)
"""Layers of Stable Diffusion's network that ComfyUI names."""


def write_lora(
    backbone: Any,
    adapters: Mapping[str, Any],
    layout: Layout,
    folder: Path,
    facts: Mapping[str, str],
    dtype: torch.dtype,
) -> Path:
    """Write the one LoRA among a run's adapters.

    Args:
        backbone: adapters attached.
        adapters: by name.
        layout: of which program.
        folder: where to.
        facts: where it comes from, for the file's header.
        dtype: of the weights.

    Returns:
        The file of weights.

    Raises:
        UserError: another number of LoRAs than one, or a layout that cannot hold this one.
    """
    found = [adapter for adapter in adapters.values() if isinstance(adapter, LoRA)]
    if len(found) != 1 or type(backbone) not in NETWORKS:
        came = f"{len(found)} LoRAs on a {type(backbone).__name__}"
        wanted = f"one LoRA on a {' or '.join(kind.__name__ for kind in NETWORKS)}"
        raise UserError(f"--format {layout}", came, wanted, "use --format merged")
    if layout != "peft" and not isinstance(backbone, StableDiffusion):
        wanted, fix = "a family whose pipeline loads LoRAs, Stable Diffusion", "use --format peft or merged"
        raise UserError(f"--format {layout}", f"a {type(backbone).__name__}", wanted, fix)
    if found[0].dora or found[0].rank_pattern or found[0].alpha_pattern:
        came = "a LoRA with DoRA, or with ranks by pattern"
        raise UserError(f"--format {layout}", came, "a plain LoRA", "use --format merged")
    weights = {name: w.detach().to(dtype).contiguous() for name, w in found[0].named_weights().items()}
    path, tensors, header = _LAYOUTS[layout](found[0], weights, folder)
    save_file(tensors, path, metadata={"format": "pt", **facts, **header})
    return path


def layers(weights: Mapping[str, Tensor]) -> list[str]:
    """Names of the layers that a LoRA's weights stand on."""
    return sorted({name.rpartition(".lora_")[0] for name in weights})


def _peft(lora: LoRA, weights: Mapping[str, Tensor], folder: Path) -> tuple[Path, dict[str, Tensor], dict[str, str]]:
    config = {
        "peft_type": "LORA",
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "use_dora": lora.dora,
        "target_modules": layers(weights),
        "inference_mode": True,
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n")
    return folder / PEFT, {f"base_model.model.{name}": w for name, w in weights.items()}, {}


def _diffusers(
    lora: LoRA, weights: Mapping[str, Tensor], folder: Path
) -> tuple[Path, dict[str, Tensor], dict[str, str]]:
    config = {"unet.r": lora.rank, "unet.lora_alpha": lora.alpha, "unet.target_modules": layers(weights)}
    header = {"lora_adapter_metadata": json.dumps(config)}
    return folder / DIFFUSERS, {f"unet.{name}": w for name, w in weights.items()}, header


def _comfyui(lora: LoRA, weights: Mapping[str, Tensor], folder: Path) -> tuple[Path, dict[str, Tensor], dict[str, str]]:
    strange = [name for name in layers(weights) if not _COMFYUI_LAYERS.fullmatch(name)]
    if strange:
        wanted = "layers that ComfyUI names: attention, feed-forward, projections, convolutions, time embeddings"
        raise UserError("--format comfyui", f"a LoRA on {strange[0]}", wanted, "use another format")
    tensors = {}
    for layer in layers(weights):
        key = f"lora_unet_{layer.replace('.', '_')}"
        tensors[f"{key}.lora_down.weight"] = weights[f"{layer}.lora_A.weight"]
        tensors[f"{key}.lora_up.weight"] = weights[f"{layer}.lora_B.weight"]
        tensors[f"{key}.alpha"] = torch.tensor(float(lora.alpha))
    return folder / COMFYUI, tensors, {"ss_network_module": "networks.lora", "ss_network_dim": str(lora.rank)}


_LAYOUTS: dict[Layout, Callable[[LoRA, Mapping[str, Tensor], Path], tuple[Path, dict[str, Tensor], dict[str, str]]]] = {
    "peft": _peft,
    "diffusers": _diffusers,
    "comfyui": _comfyui,
}
