"""The card of an export, README.md: what it is, what it stands on, how to use it, how it was proved."""

from collections.abc import Mapping
from typing import Any

from mmtrain.backbone import usual
from mmtrain.backbone.aligned import Aligned
from mmtrain.backbone.clip import CLIP
from mmtrain.backbone.codec import Codec, KLCodec
from mmtrain.backbone.pair import Pair
from mmtrain.backbone.prior import Prior
from mmtrain.backbone.siglip import SigLIP
from mmtrain.backbone.svd import StableVideoDiffusion
from mmtrain.backbone.vq import VQCodec
from mmtrain.backbone.wan_codec import WanCodec
from mmtrain.backbone.weights import is_hub_id
from mmtrain.export.lora import NETWORKS
from mmtrain.export.peft import can_be_peft
from mmtrain.export.prove import Proof
from mmtrain.run import Run
from mmtrain.sample.generate import part_of, starts_from_image

KINDS: dict[type, str] = {
    StableVideoDiffusion: "Stable Video Diffusion, image to video",
    CLIP: "CLIP, text and images in one space",
    SigLIP: "SigLIP, text and images in one space",
    Pair: "a text and a visual tower in one space",
    KLCodec: "KL codec, pixels to latents and back",
    VQCodec: "VQ codec, pixels to codes and back",
    WanCodec: "causal video codec, clips to latents and back",
}
"""Of the families that are not named well by the pipeline that opens them."""

USES = {
    "StableVideoDiffusion": """from diffusers import StableVideoDiffusionPipeline
from diffusers.utils import load_image

pipeline = StableVideoDiffusionPipeline.from_pretrained("{folder}")
frames = pipeline(load_image("first_frame.png"), height={height}, width={width}).frames[0]""",
    "CLIP": """from transformers import CLIPModel, CLIPTokenizer

model, tokenizer = CLIPModel.from_pretrained("{folder}"), CLIPTokenizer.from_pretrained("{folder}")""",
    "SigLIP": """from transformers import AutoTokenizer, SiglipModel

model, tokenizer = SiglipModel.from_pretrained("{folder}"), AutoTokenizer.from_pretrained("{folder}")""",
    "Pair": """from transformers import {cls}

text = {cls}.from_pretrained("{folder}/text")""",
    "codec": """from diffusers import {cls}

codec = {cls}.from_pretrained("{folder}")""",
    "image": """from diffusers import {cls}

pipeline = {cls}.from_pretrained("{folder}")
image = pipeline("a prompt", height={height}, width={width}{how}).images[0]""",
    "video": """from diffusers import {cls}

pipeline = {cls}.from_pretrained("{folder}")
frames = pipeline("a prompt", height={height}, width={width}, num_frames={frames}).frames[0]""",
    "video of an image": """from diffusers import {cls}
from diffusers.utils import load_image

pipeline, image = {cls}.from_pretrained("{folder}"), load_image("first_frame.png").resize(({width}, {height}))
frames = pipeline(image, "a prompt", height={height}, width={width}, num_frames={frames}).frames[0]""",
    "embedding": """from diffusers import {cls}

pipeline = {cls}.from_pretrained("{folder}")
image_embeds = pipeline("a prompt").image_embeds""",
}

PEFT = """from peft import PeftModel
from transformers import {kind}

model = PeftModel.from_pretrained({kind}.from_pretrained("{base}"), "<this folder>/peft")"""


LORA_USES = {
    "peft": """import diffusers, peft

network = diffusers.{network}.from_pretrained("{base}", subfolder="unet")
network = peft.PeftModel.from_pretrained(network, "{folder}")""",
    "diffusers": """from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained("{base}")
pipeline.load_lora_weights("{folder}", weight_name="pytorch_lora_weights.safetensors")
image = pipeline("a prompt"{how}).images[0]""",
    "comfyui": """# ComfyUI: copy comfyui_lora.safetensors to models/loras and choose it in a "Load LoRA" node.
# In diffusers:
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained("{base}")
pipeline.load_lora_weights("{folder}", weight_name="comfyui_lora.safetensors")""",
}


ONNX = """import onnxruntime

network = onnxruntime.InferenceSession("{folder}/{part}/model.onnx")
for each in network.get_inputs():  # named as diffusers' network names them; float32, a level for each sample
    print(each.name, each.type, each.shape)
# [output] = network.run(None, {{name: array, …}})"""


def card(
    run: Run,
    backbone: Any,
    adapters: dict[str, Any],
    facts: dict[str, Any] | None,
    proof: Proof | None,
    dtype: str,
    layout: str,
) -> str:
    """The card's text.

    Args:
        run: the run that trained it.
        backbone: what was trained, adapters attached.
        adapters: by name.
        facts: the artifact's, or None for a whole backbone.
        proof: that vanilla libraries open the folder; None where it has nothing for them.
        dtype: of its weights, in words.
        layout: ``merged``, ``onnx``, or that of a LoRA.
    """
    lines = [
        f"# {run.cfg.name}",
        "",
        _what(backbone, adapters, facts),
        "",
        *_table(run, facts, proof, dtype, layout),
        "",
    ]
    if facts is not None:
        lines += ["## In mmtrain", "", "```sh", f"mmtrain {_words(backbone)}", "```", ""]
    if proof is None:
        lines += ["Bottlenecks cannot be folded into the network's weights: this folder works in mmtrain alone.", ""]
    else:
        lines += [
            "## Without mmtrain",
            "",
            "```python",
            _use(backbone, "<this folder>", layout, run.sampling),
            "```",
            "",
        ]
    if can_be_peft(backbone, adapters):
        lines += ["## By PEFT", "", "```python", PEFT.format(kind=type(backbone.model).__name__, base=backbone.path)]
        lines += ["```", ""]
    if isinstance(backbone, Aligned) and [*backbone.over_time, *backbone.visual_top, *backbone.text_top]:
        lines += [
            "What stands on top of the towers is in `adapter.safetensors` and works in mmtrain; no library has a place",
            "for it.",
            "",
        ]
    if proof is not None and getattr(backbone, "bridge", None) is not None:
        lines += [
            "The vanilla pipeline is conditioned on an image and has no place for text: it carries what was trained in",
            "the network. The bridge that brings the text is in `adapter.safetensors` and works in mmtrain.",
            "",
        ]
    lines += [
        "What it makes is generated by a model; say so where you show it. The base's licence holds for it too.",
        "",
    ]
    return "\n".join(lines)


def _what(backbone: Any, adapters: dict[str, Any], facts: dict[str, Any] | None) -> str:
    kind = KINDS.get(type(backbone)) or f"{backbone.pipeline_class}, {_start(backbone)} to {backbone.makes}"
    if facts is None:
        return f"A whole model, trained with mmtrain: {kind}."
    parts = []
    for name, adapter in adapters.items():
        count = sum(weight.numel() for weight in adapter.named_weights().values())
        parts.append(f"`{name}` ({type(adapter).__name__}, {count:,} weights)")
    return f"Adapters trained with mmtrain on a frozen base ({kind}): {', '.join(parts)}."


def _table(run: Run, facts: dict[str, Any] | None, proof: Proof | None, dtype: str, layout: str) -> list[str]:
    rows = {"run": f"`{run.run_id}`", "seed": str(run.cfg.seed), "data's fingerprint": f"`{run.manifest['data']}`"}
    if facts is not None:
        rows["base"] = f"`{facts['base']['path']}`, weights `{facts['base']['digest']}`"
        rows["steps"] = str(facts["step"])
    if proof is None:
        rows["proved"] = "loaded again by mmtrain: bit for bit what the trained model gives"
    elif layout == "onnx":
        rows["proved"] = (
            f"run by ONNX Runtime in a clean process, on batches of two sizes: the network's output {proof.mean:.2g} "
            f"deviations from the trained one's in the mean, {proof.most:.2g} at most"
        )
    elif layout != "merged":
        rows["weights of the folder"] = dtype
        rows["proved"] = (
            f"loaded on the base by the library of the layout {layout}: no key missing, none left over; the network's "
            f"output {proof.mean:.2g} deviations from the trained one's in the mean, {proof.most:.2g} at most"
        )
    else:
        rows["weights of the folder"] = dtype
        rows["proved"] = (
            f"opened by the vanilla library: every weight equal; after two steps {proof.mean:.2g} levels of 255 "
            f"from the trained model in the mean, {proof.most:.2g} at most"
        )
    rows["made with"] = ", ".join(f"{name} {version}" for name, version in run.manifest["packages"].items())
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]


def _words(backbone: Any) -> str:
    if isinstance(backbone, Aligned):
        return "evaluate <this folder>"
    if isinstance(backbone, Prior):
        return 'sample <a Stable Video Diffusion> --prior <this folder> --prompt "…"'
    blind = isinstance(backbone, StableVideoDiffusion) and backbone.text is None
    begin = " --image first_frame.png" if blind or starts_from_image(backbone) else ""
    return "sample <this folder>" + ("" if blind else ' --prompt "…"') + begin


def _start(backbone: Any) -> str:
    return "image and text" if starts_from_image(backbone) else "text"


def _use(backbone: Any, folder: str, layout: str, sampling: Mapping[str, Any]) -> str:
    how = "".join(f", {name}={value}" for name, value in usual.whole(sampling).items())
    if layout == "onnx":
        return ONNX.format(folder=folder, part=part_of(backbone))
    if layout != "merged":
        base = backbone.path if is_hub_id(backbone.path) else "<the base's folder>"
        return LORA_USES[layout].format(folder=folder, base=base, network=NETWORKS[type(backbone)], how=how)
    if isinstance(backbone, Codec):
        return USES["codec"].format(folder=folder, cls=type(backbone.model).__name__)
    own = type(backbone).__name__
    height, width = getattr(backbone, "size", (0, 0))
    facts = {"height": height, "width": width, "frames": getattr(backbone, "num_frames", 1)}
    facts["cls"] = getattr(backbone, "pipeline_class", "")
    if isinstance(backbone, Pair):
        facts["cls"] = type(backbone.towers.text.model).__name__
    kind = f"{backbone.makes} of an image" if starts_from_image(backbone) else getattr(backbone, "makes", "")
    facts["how"] = how
    return USES[own if own in USES else kind].format(folder=folder, **facts)
