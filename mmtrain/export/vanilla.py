"""Opens an exported folder as anyone would, with diffusers or transformers and nothing of mmtrain, and runs it.

A script of its own: `prove.py` starts it in a clean process, as ``python -P vanilla.py FOLDER``. The folder holds
``ask.json`` (what to open, what to run) and ``input.npy``; it gets ``output.npy`` and ``digests.json``.
"""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file

Answer = tuple[np.ndarray, dict[str, Any]]
"""What came out, and the modules that made it by name."""


def video(ask: dict[str, Any], given: np.ndarray) -> Answer:
    """Image → video; ``given`` uint8 ``[h w c]``, frames uint8 ``[t h w c]``."""
    pipeline = diffusers.StableVideoDiffusionPipeline.from_pretrained(ask["folder"])
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(ask["seed"])
    frames = pipeline(Image.fromarray(given), **ask["call"], generator=generator, output_type="pil").frames[0]
    parts = {"unet": pipeline.unet, "vae": pipeline.vae, "image_encoder": pipeline.image_encoder}
    return np.stack([np.asarray(frame) for frame in frames]), parts


def text(ask: dict[str, Any], given: np.ndarray) -> Answer:
    """Text → image or video, or text and a first frame ``given`` uint8 ``[h w c]`` → video; uint8 ``[1 h w c]`` or
    ``[1 t h w c]``."""
    pipeline = getattr(diffusers, ask["class"]).from_pretrained(ask["folder"])
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(ask["seed"])
    begin = {"image": Image.fromarray(given)} if given.size else {}
    made = pipeline(prompt=ask["prompt"], **begin, **ask["call"], generator=generator, output_type="np")
    pixels = np.asarray(made.frames if hasattr(made, "frames") else made.images)
    return (pixels * 255).round().astype(np.uint8), {name: getattr(pipeline, name) for name in ask["parts"]}


def embedding(ask: dict[str, Any], given: np.ndarray) -> Answer:
    """Text → an image's CLIP embedding of unit length, float32 ``[1 d]``."""
    pipeline = diffusers.KandinskyPriorPipeline.from_pretrained(ask["folder"])
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(ask["seed"])
    made = pipeline([ask["prompt"]], **ask["call"], generator=generator).image_embeds
    parts = {name: getattr(pipeline, name) for name in ("prior", "image_encoder", "text_encoder")}
    return torch.nn.functional.normalize(made, dim=-1).numpy(), parts


def clip(ask: dict[str, Any], given: np.ndarray) -> Answer:
    """Text and pixels → embeddings of unit length, float32 ``[2 d]``; ``given`` float32 ``[1 c h w]``, prepared."""
    model = transformers.CLIPModel.from_pretrained(ask["folder"])
    return _both(model, _ids(ask, Path(ask["folder"])), given), {"model": model}


def siglip(ask: dict[str, Any], given: np.ndarray) -> Answer:
    """As `clip`."""
    model = transformers.SiglipModel.from_pretrained(ask["folder"])
    return _both(model, _ids(ask, Path(ask["folder"])), given), {"model": model}


def peft(ask: dict[str, Any], given: np.ndarray) -> Answer:
    """As `clip`: the base from where it lies, the adapter through peft."""
    base = getattr(transformers, ask["class"]).from_pretrained(ask["base"])
    model = PeftModel.from_pretrained(base, Path(ask["folder"]) / "peft")
    return _both(model, _ids(ask, Path(ask["base"])), given), {"model": model.merge_and_unload()}


def pair(ask: dict[str, Any], given: np.ndarray) -> Answer:
    """Text by one library's class, pixels by another's → features of unit length, one after the other, ``[d + d']``."""
    folder = Path(ask["folder"])
    parts = {"text": getattr(transformers, ask["text"]).from_pretrained(folder / "text").eval()}
    tokens = _tokens(ask, folder / "text")
    output = parts["text"](input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
    features = [output.text_embeds[0] if "text_embeds" in output else output.last_hidden_state[0, _last(tokens)]]
    if ask["visual"] is not None:
        parts["visual"] = getattr(transformers, ask["visual"]).from_pretrained(folder / "visual").eval()
        output = parts["visual"](pixel_values=torch.from_numpy(given))
        features.append(output.image_embeds[0] if "image_embeds" in output else output.last_hidden_state[0, 0])
    return np.concatenate([torch.nn.functional.normalize(f, dim=-1).numpy() for f in features]), parts


def _both(model: Any, ids: torch.Tensor, given: np.ndarray) -> np.ndarray:
    output = model.eval()(input_ids=ids, pixel_values=torch.from_numpy(given))
    return torch.cat([output.text_embeds, output.image_embeds]).numpy()


def _tokens(ask: dict[str, Any], folder: Path) -> Any:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer([ask["prompt"]], padding="max_length", max_length=ask["tokens"], return_tensors="pt")


def _ids(ask: dict[str, Any], folder: Path) -> torch.Tensor:
    ids: torch.Tensor = _tokens(ask, folder).input_ids
    return ids


def _last(tokens: Any) -> int:
    return int(tokens.attention_mask.sum()) - 1


def codec(ask: dict[str, Any], given: np.ndarray) -> Answer:
    """Pixels there and back; ``given`` and what comes out float32 ``[t c h w]`` in [-1, 1]."""
    model = getattr(diffusers, ask["class"]).from_pretrained(ask["folder"]).eval()
    encoded = model.encode(torch.from_numpy(given))
    latents = encoded.latents if ask["class"] == "VQModel" else encoded.latent_dist.mode()
    more = {"num_frames": len(given)} if ask["class"] == "AutoencoderKLTemporalDecoder" else {}
    return model.decode(latents, **more).sample.numpy(), {"model": model}


def lora(ask: dict[str, Any], given: np.ndarray) -> Answer:
    """A network on its base with a LoRA loaded, at inputs drawn from the seed; float32."""
    if ask["layout"] == "peft":
        import peft

        network = getattr(diffusers, ask["network"]).from_pretrained(ask["base"], subfolder="unet")
        network = peft.PeftModel.from_pretrained(network, str(Path(ask["file"]).parent))
    else:
        pipeline = diffusers.StableDiffusionPipeline.from_pretrained(ask["base"])
        pipeline.load_lora_weights(ask["file"])
        network = pipeline.unet
    _account(network, ask["file"])
    generator = torch.Generator().manual_seed(ask["seed"])
    inputs = {name: torch.randn(shape, generator=generator) for name, shape in ask["inputs"].items()}
    return network.eval()(**inputs, timestep=torch.tensor(7)).sample.numpy(), {}


def _account(network: torch.nn.Module, file: str) -> None:
    """Every tensor of the file is in the network, and no other. Layouts name them differently; values are compared."""
    wanted = [tensor for name, tensor in load_file(file).items() if not name.endswith(".alpha")]
    found = [weight for name, weight in network.named_parameters() if "lora_" in name]
    if sorted(map(_hash, found)) != sorted(map(_hash, wanted)):
        sys.exit(f"{len(wanted)} tensors in the file and {len(found)} in the network, or other values")


def _hash(tensor: torch.Tensor) -> str:
    values = tensor.detach().float().contiguous().numpy()
    return hashlib.blake2b(repr(values.shape).encode() + values.tobytes(), digest_size=16).hexdigest()


KINDS: dict[str, Callable[[dict[str, Any], np.ndarray], Answer]] = {
    "video": video,
    "text": text,
    "embedding": embedding,
    "clip": clip,
    "siglip": siglip,
    "peft": peft,
    "pair": pair,
    "codec": codec,
    "lora": lora,
}


def digest(model: torch.nn.Module) -> str:
    """As `mmtrain.backbone.weights.digest` computes it; written again here, so that nothing of mmtrain is needed."""
    total = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        total.update(f"{name}{tuple(tensor.shape)}".encode())
        total.update(tensor.detach().float().contiguous().cpu().numpy().tobytes())
    return total.hexdigest()


def main(folder: Path) -> None:
    ask = json.loads((folder / "ask.json").read_text())
    torch.set_num_threads(ask["threads"])
    with torch.no_grad():
        output, parts = KINDS[ask["kind"]](ask, np.load(folder / "input.npy", allow_pickle=False))
    np.save(folder / "output.npy", output)
    (folder / "digests.json").write_text(json.dumps({name: digest(part) for name, part in parts.items()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    assert not any(name.split(".")[0] == "mmtrain" for name in sys.modules), "the proof must need nothing of mmtrain"
