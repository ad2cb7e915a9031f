"""open_clip's checkpoints to transformers' layout and back: names, and nothing else, so that a round trip is bit-equal.

open_clip keeps a folder of ``open_clip_config.json`` and ``open_clip_model.safetensors``, as on the hub. It has one
matrix for q, k and v where transformers has three, and keeps its projections transposed.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel

from mmtrain.backbone.clip import CLIP
from mmtrain.backbone.weights import write_manifest
from mmtrain.data.shards import refuse_existing
from mmtrain.errors import UserError

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
WORDS = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")
_HEAD = 64  # open_clip's width of a vision head, where it names none
_NORMS = {"layer_norm1": "ln_1", "layer_norm2": "ln_2"}
_LINEAR = {"self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
_WHOLE = {
    "logit_scale": "logit_scale",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
}
_TURNED = {"text_projection.weight": "text_projection", "visual_projection.weight": "visual.proj"}
_TOWERS = {"text_model": "transformer", "vision_model": "visual.transformer"}


def names(config: CLIPConfig) -> dict[str, str]:
    """transformers' name → open_clip's, of every weight that both keep in one piece and the same way up."""
    found = dict(_WHOLE)
    for ours, theirs in _blocks(config):
        for one, other in {**_NORMS, **_LINEAR}.items():
            for part in ("weight", "bias"):
                found[f"{ours}.{one}.{part}"] = f"{theirs}.{other}.{part}"
    return found


def _blocks(config: CLIPConfig) -> list[tuple[str, str]]:
    towers = {"text_model": config.text_config, "vision_model": config.vision_config}
    return [
        (f"{tower}.encoder.layers.{i}", f"{_TOWERS[tower]}.resblocks.{i}")
        for tower, part in towers.items()
        for i in range(part.num_hidden_layers)
    ]


def to_open_clip(weights: Mapping[str, Tensor], config: CLIPConfig) -> dict[str, Tensor]:
    """`CLIPModel`'s weights under open_clip's names."""
    made = {theirs: weights[ours] for ours, theirs in names(config).items()}
    made |= {theirs: weights[ours].T for ours, theirs in _TURNED.items()}
    for ours, theirs in _blocks(config):
        for part in ("weight", "bias"):
            three = [weights[f"{ours}.self_attn.{which}_proj.{part}"] for which in "qkv"]
            made[f"{theirs}.attn.in_proj_{part}"] = torch.cat(three)
    return {name: weight.contiguous() for name, weight in made.items()}


def from_open_clip(weights: Mapping[str, Tensor], config: CLIPConfig) -> dict[str, Tensor]:
    """open_clip's weights under `CLIPModel`'s names.

    Raises:
        UserError: keys missing or left over: not this architecture.
    """
    wanted = {*names(config).values(), *_TURNED.values()}
    wanted |= {f"{theirs}.attn.in_proj_{part}" for _, theirs in _blocks(config) for part in ("weight", "bias")}
    if weights.keys() != wanted:
        missing, more = sorted(wanted - weights.keys())[:3], sorted(weights.keys() - wanted)[:3]
        came = f"missing keys {missing}, unexpected keys {more}"
        raise UserError("open_clip weights", came, "a CLIP of two transformers", "convert another model")
    made = {ours: weights[theirs] for ours, theirs in names(config).items()}
    made |= {ours: weights[theirs].T for ours, theirs in _TURNED.items()}
    for ours, theirs in _blocks(config):
        for part in ("weight", "bias"):
            three = weights[f"{theirs}.attn.in_proj_{part}"].chunk(3)
            made |= {f"{ours}.self_attn.{w}_proj.{part}": third for w, third in zip("qkv", three, strict=True)}
    return {name: weight.contiguous() for name, weight in made.items()}


def described(config: CLIPConfig, mean: list[float], std: list[float]) -> dict[str, Any]:
    """``open_clip_config.json`` of a CLIP."""
    text, vision = config.text_config, config.vision_config
    return {
        "model_cfg": {
            "embed_dim": config.projection_dim,
            "quick_gelu": text.hidden_act == "quick_gelu",
            "vision_cfg": {
                "image_size": vision.image_size,
                "layers": vision.num_hidden_layers,
                "width": vision.hidden_size,
                "head_width": vision.hidden_size // vision.num_attention_heads,
                "patch_size": vision.patch_size,
                "mlp_ratio": vision.intermediate_size / vision.hidden_size,
            },
            "text_cfg": {
                "context_length": text.max_position_embeddings,
                "vocab_size": text.vocab_size,
                "width": text.hidden_size,
                "heads": text.num_attention_heads,
                "layers": text.num_hidden_layers,
                "mlp_ratio": text.intermediate_size / text.hidden_size,
            },
        },
        "preprocess_cfg": {"mean": mean, "std": std},
    }


def understood(facts: Mapping[str, Any], tokenizer: Any) -> CLIPConfig:
    """The configuration of transformers that an ``open_clip_config.json`` describes."""
    model = facts["model_cfg"]
    text, vision = model["text_cfg"], model["vision_cfg"]
    act = {"hidden_act": "quick_gelu" if model.get("quick_gelu") else "gelu", "projection_dim": model["embed_dim"]}
    heads = vision["width"] // vision.get("head_width", _HEAD)
    return CLIPConfig(
        text_config={
            **_tower(text, text["heads"]),
            **act,
            "max_position_embeddings": text["context_length"],
            "vocab_size": text["vocab_size"],
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            **_tower(vision, heads),
            **act,
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
        },
        projection_dim=model["embed_dim"],
    )


def _tower(part: Mapping[str, Any], heads: int) -> dict[str, int]:
    inner = round(part["width"] * part.get("mlp_ratio", 4.0))
    layers = {"num_hidden_layers": part["layers"], "num_attention_heads": heads}
    return {"hidden_size": part["width"], "intermediate_size": inner, **layers}


def convert(source: Path, to: Path) -> Path:
    """Write the other library's folder of a CLIP: open_clip's of transformers', or the other way round.

    Raises:
        UserError: a folder of neither, an architecture that the other lacks, or ``to`` exists.
    """
    refuse_existing(to)
    back = (source / CONFIG).is_file()
    if not back and not (source / "config.json").is_file():
        raise UserError(str(source), f"neither {CONFIG} nor config.json", "a CLIP's folder", "correct the path")
    to.mkdir(parents=True, exist_ok=True)
    (_from if back else _to)(source, to)
    return to


def _to(source: Path, to: Path) -> None:
    clip = CLIP(path=str(source))
    config = clip.model.config
    save_file(to_open_clip(clip.model.state_dict(), config), to / WEIGHTS, metadata={"format": "pt"})
    facts = described(config, clip.processor.image_mean, clip.processor.image_std)
    (to / CONFIG).write_text(json.dumps(facts, indent=1) + "\n")
    for name in WORDS:
        if (source / name).is_file():
            shutil.copy(source / name, to / name)


def _from(source: Path, to: Path) -> None:
    facts = json.loads((source / CONFIG).read_text())
    tokenizer = AutoTokenizer.from_pretrained(source)
    try:
        config = understood(facts, tokenizer)
    except KeyError as error:
        raise UserError(str(source / CONFIG), f"no {error}", "a CLIP of two transformers", "convert another") from error
    tokenizer.model_max_length = config.text_config.max_position_embeddings
    model = CLIPModel(config)
    model.load_state_dict(from_open_clip(load_file(source / WEIGHTS), config))
    size, seen = config.vision_config.image_size, facts["preprocess_cfg"]
    crop = {"height": size, "width": size}
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size=crop, image_mean=list(seen["mean"]), image_std=list(seen["std"])
    )
    for part in (model, tokenizer, processor):
        part.save_pretrained(to)
    write_manifest(to)
