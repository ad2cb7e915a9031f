"""Parity: a CLIP under open_clip's names is that library's model: its forward, written out here, gives equal logits."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer

from mmtrain.backbone.clip import CLIP
from mmtrain.errors import UserError
from mmtrain.export.open_clip import CONFIG, WEIGHTS, convert, from_open_clip, to_open_clip

CAPTIONS = ["a red circle", "a blue square moving up"]


def forward(w: dict[str, Tensor], facts: dict, ids: Tensor, pixels: Tensor) -> Tensor:
    """Logits per image, from the weights by open_clip's names: pre-norm blocks, a causal text, pooled at the end."""
    text, vision = facts["text_cfg"], facts["vision_cfg"]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    def blocks(x: Tensor, prefix: str, layers: int, heads: int, causal: bool) -> Tensor:
        for i in range(layers):
            p = f"{prefix}.resblocks.{i}"
            qkv = F.linear(norm(x, f"{p}.ln_1"), w[f"{p}.attn.in_proj_weight"], w[f"{p}.attn.in_proj_bias"])
            q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, -1))
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)
            x = x + F.linear(mixed, w[f"{p}.attn.out_proj.weight"], w[f"{p}.attn.out_proj.bias"])
            h = F.linear(norm(x, f"{p}.ln_2"), w[f"{p}.mlp.c_fc.weight"], w[f"{p}.mlp.c_fc.bias"])
            h = h * torch.sigmoid(1.702 * h)
            x = x + F.linear(h, w[f"{p}.mlp.c_proj.weight"], w[f"{p}.mlp.c_proj.bias"])
        return x

    x = F.conv2d(pixels, w["visual.conv1.weight"], stride=vision["patch_size"]).flatten(2).transpose(1, 2)
    first = w["visual.class_embedding"].expand(len(x), 1, -1)
    x = norm(torch.cat([first, x], 1) + w["visual.positional_embedding"], "visual.ln_pre")
    heads = vision["width"] // vision["head_width"]
    x = blocks(x, "visual.transformer", vision["layers"], heads, causal=False)
    image = norm(x[:, 0], "visual.ln_post") @ w["visual.proj"]
    y = w["token_embedding.weight"][ids] + w["positional_embedding"][: ids.shape[1]]
    y = norm(blocks(y, "transformer", text["layers"], text["heads"], causal=True), "ln_final")
    said = y[torch.arange(len(ids)), ids.argmax(-1)] @ w["text_projection"]
    return w["logit_scale"].exp() * F.normalize(image, dim=-1) @ F.normalize(said, dim=-1).T


def test_logits_equal_an_independent_forward_and_the_way_back_is_bit_equal(tiny_clip: Path, tmp_path: Path):
    there, back = tmp_path / "open_clip", tmp_path / "transformers"
    convert(tiny_clip, there)
    convert(there, back)
    ours = CLIPModel.from_pretrained(tiny_clip).eval()
    again = CLIPModel.from_pretrained(back).eval()
    assert all(torch.equal(w, again.state_dict()[n]) for n, w in ours.state_dict().items())
    ids = CLIPTokenizer.from_pretrained(back)(CAPTIONS, padding="max_length", return_tensors="pt").input_ids
    assert torch.equal(ids, CLIP(path=str(tiny_clip)).tokens(CAPTIONS)[0])
    pixels = torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    facts = json.loads((there / CONFIG).read_text())["model_cfg"]
    with torch.no_grad():
        wanted = forward(load_file(there / WEIGHTS), facts, ids, pixels)
        got = again(input_ids=ids, pixel_values=pixels).logits_per_image
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert wanted.std() > 1e-3


def test_open_clips_names_survive_the_round_trip(tiny_clip: Path):
    model = CLIPModel.from_pretrained(tiny_clip)
    theirs = to_open_clip(model.state_dict(), model.config)
    again = to_open_clip(from_open_clip(theirs, model.config), model.config)
    assert theirs.keys() == again.keys()
    assert all(torch.equal(w, again[n]) for n, w in theirs.items())


def test_another_architecture_is_refused(tiny_clip: Path):
    model = CLIPModel.from_pretrained(tiny_clip)
    theirs = to_open_clip(model.state_dict(), model.config)
    theirs["visual.trunk.stem.weight"] = theirs.pop("visual.conv1.weight")
    with pytest.raises(UserError, match=r"visual\.conv1.*visual\.trunk"):
        from_open_clip(theirs, model.config)
