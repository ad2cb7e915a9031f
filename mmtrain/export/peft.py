"""LoRA on a CLIP or SigLIP as a PEFT adapter: a folder ``peft/`` that `PeftModel.from_pretrained` puts on the base.

It carries what stands inside the network and can be written so: LoRA and DoRA, nothing else.
"""

from pathlib import Path
from typing import Any

from peft import get_peft_model_state_dict
from safetensors.torch import save_file

from mmtrain.adapter.bottleneck import Bottleneck
from mmtrain.adapter.full import Full
from mmtrain.adapter.lora import LoRA
from mmtrain.adapter.temperature import Temperature
from mmtrain.backbone.clip import CLIP
from mmtrain.backbone.siglip import SigLIP

FOLDER = "peft"


def can_be_peft(backbone: Any, adapters: dict[str, Any]) -> bool:
    """Whether one LoRA is all that changes the network of a base that lies somewhere."""
    inside = [a for a in adapters.values() if isinstance(a, LoRA | Full | Bottleneck | Temperature)]
    alone = len(inside) == 1 and isinstance(inside[0], LoRA)
    return isinstance(backbone, CLIP | SigLIP) and backbone.path != "fresh" and alone


def write_peft(backbone: Any, adapters: dict[str, Any], folder: Path) -> None:
    """Write ``folder/peft``: ``adapter_config.json`` and ``adapter_model.safetensors`` in PEFT's own names."""
    [lora] = [a for a in adapters.values() if isinstance(a, LoRA)]
    own = get_peft_model_state_dict(backbone.network)
    target = folder / FOLDER
    target.mkdir()
    weights = {f"base_model.model.{name}": w.detach().cpu().contiguous() for name, w in own.items()}
    save_file(weights, target / "adapter_model.safetensors", metadata={"format": "pt"})
    lora.built.base_model_name_or_path = backbone.path
    lora.built.save_pretrained(target)
