"""What `benchmarks/gpu.py` measures: architectures by their published configs, with random weights and drawn inputs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from mmtrain import config
from mmtrain.adapter.lora import LoRA
from mmtrain.objective.tiles import Names, infonce
from mmtrain.train import plan


@dataclass
class Work:
    """A network with adapters on a device; its loss as we compute it, and as a plain loop does."""

    network: nn.Module
    loss: Callable[[], Tensor]
    plain_loss: Callable[[], Tensor]


@dataclass(frozen=True)
class Part:
    """One architecture at one size."""

    batch: int
    build: Callable[[str], Work]
    checkpointing: bool = False


def placed(network: nn.Module, device: str) -> nn.Module:
    """A network from the meta device with drawn weights: what is frozen in bf16 on a GPU, what trains in 32 bits."""
    if device == "meta":
        return network
    network.to_empty(device=device)
    for buffer in network.buffers():
        buffer.zero_()
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.02)
        if device == "cuda" and not weight.requires_grad:
            weight.data = weight.data.to(torch.bfloat16)
    return network


def denoiser(batch: int, frames: int, height: int, width: int, *words: str, checkpointing: bool = False) -> Part:
    """LoRA of rank 16 on a diffusion network, by the words of the recipe ``sd_lora``."""

    def build(device: str) -> Work:
        lora = ["adapters.style.rank=16", "adapters.style.alpha=16", "dataset.shards=nowhere"]
        model, _ = plan.outline(config.compose("sd_lora", [*lora, *words]))
        placed(model.network, device)
        latents, level, condition = model.example(batch, frames, height, width)
        kind = torch.bfloat16 if device == "meta" else torch.float32
        if device != "meta":
            latents = torch.randn_like(latents)
            condition = {name: torch.randn_like(part) for name, part in condition.items()}
        latents, condition = latents.to(kind), {name: part.to(kind) for name, part in condition.items()}

        def loss() -> Tensor:
            return (model.predict(latents, level, condition).float() - latents).square().mean()

        return Work(model.network, loss, loss)

    return Part(batch, build, checkpointing)


def clip(batch: int, text: dict[str, Any], vision: dict[str, Any], width: int) -> Part:
    """A contrastive step of a CLIP with LoRA of rank 16 on every attention; both towers run."""

    def build(device: str) -> Work:
        with torch.device("meta"):
            network = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=width))
        network.requires_grad_(False)
        holder = type("Holder", (), {"network": network, "presets": {}})()
        lora = LoRA(rank=16, alpha=16, targets=["*.q_proj", "*.k_proj", "*.v_proj", "*.out_proj"])
        lora.attach(holder)
        network.to("meta")
        placed(network, device)
        for name, buffer in network.named_buffers():
            if name.endswith("position_ids") and device != "meta":
                buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
        side, length = vision["image_size"], text["max_position_embeddings"]
        kind = torch.bfloat16 if device == "meta" else torch.float32
        pixels = torch.zeros(batch, 3, side, side, device=device, dtype=kind)
        ids = torch.ones(batch, length, dtype=torch.long, device=device)

        def embeds() -> tuple[Tensor, Tensor]:
            out = network(input_ids=ids, pixel_values=pixels)
            return out.image_embeds.float(), out.text_embeds.float()

        def plain() -> Tensor:
            images, words = embeds()
            logits, pairs = 100 * images @ words.T, torch.arange(batch, device=device)
            return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2

        def loss() -> Tensor:
            images, words = embeds()
            scale = torch.tensor(4.6, device=device)
            return infonce(images, words, scale, Names.apart(batch, images.device), 512).loss.mean()

        return Work(network, loss, plain)

    return Part(batch, build)


def tower(width: int, inner: int, layers: int, heads: int, **more: int) -> dict[str, Any]:
    sizes = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
    return {**sizes, "num_attention_heads": heads, **more}


SVD = ("backbone=svd", "backbone.text_path=null")
XT = (*SVD, "backbone.path=stabilityai/stable-video-diffusion-img2vid-xt")
TEMPORAL, ATTENTION = "adapters.style.targets=temporal", "adapters.style.targets=attention"
SD15 = "backbone.path=stable-diffusion-v1-5/stable-diffusion-v1-5"
SDXL = ("backbone=sdxl", "backbone.path=stabilityai/stable-diffusion-xl-base-1.0")
WAN = ("backbone=wan", "backbone.path=Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "backbone.num_frames=49")

PARTS = {
    "SD 1.5 512² LoRA": denoiser(32, 1, 512, 512, SD15),
    "SDXL 1024² LoRA": denoiser(4, 1, 1024, 1024, *SDXL),
    "SVD 14 × 320 × 512, temporal": denoiser(2, 14, 320, 512, *XT, TEMPORAL),
    "SVD 14 × 320 × 512, all attention": denoiser(2, 14, 320, 512, *XT, ATTENTION),
    "SVD 14 × 576 × 1024, temporal": denoiser(1, 14, 576, 1024, *XT, TEMPORAL),
    "SVD 14 × 576 × 1024, all attention": denoiser(1, 14, 576, 1024, *XT, ATTENTION),
    "SVD 25 × 576 × 1024, temporal, recomputed": denoiser(1, 25, 576, 1024, *XT, TEMPORAL, checkpointing=True),
    "Wan 2.1 1.3B 49 × 480 × 832 LoRA": denoiser(1, 49, 480, 832, *WAN, checkpointing=True),
    "CLIP ViT-L/14 contrastive": clip(
        256,
        tower(768, 3072, 12, 12, max_position_embeddings=77, vocab_size=49408),
        tower(1024, 4096, 24, 16, image_size=224, patch_size=14),
        768,
    ),
}
TINY = {
    "SD": denoiser(2, 1, 64, 64),
    "SVD, temporal, recomputed": denoiser(1, 4, 64, 64, *SVD, TEMPORAL, checkpointing=True),
    "CLIP": clip(
        4,
        tower(32, 64, 2, 2, max_position_embeddings=16, vocab_size=99),
        tower(32, 64, 2, 2, image_size=32, patch_size=16),
        24,
    ),
}
