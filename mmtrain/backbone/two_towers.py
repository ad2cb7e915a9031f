"""What CLIP and SigLIP have in common: one model of transformers with both towers, its tokenizer, its processor."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from mmtrain.adapter.injected import merged
from mmtrain.backbone.aligned import Aligned, LongCaptions
from mmtrain.backbone.weights import companion, copy_as, digest, load, write_manifest


class TwoTowers(Aligned):
    """A two-tower model by hub id or local folder, frozen on arrival.

    Args:
        path: hub id or folder that the family's model class opens.
        revision: git revision of a hub id.
        long_captions: ``refuse`` or ``truncate`` a caption beyond the tower's limit.

    Attributes:
        classes: of model, tokenizer and image processor.
    """

    classes: ClassVar[tuple[Any, Any, Any]]

    def __init__(self, *, path: str, revision: str | None = None, long_captions: LongCaptions = "refuse") -> None:
        model, *beside = self.classes
        loaded = load(model, path, revision=revision)
        tokenizer, processor = (companion(part, path, revision=revision) for part in beside)
        self._hold(loaded, tokenizer, processor, path, long_captions)

    def _hold(self, model: Any, tokenizer: Any, processor: Any, path: str, long_captions: LongCaptions) -> None:
        super().__init__(tokenizer=tokenizer, long_captions=long_captions)
        self.model: Any = model
        self.processor, self.path = processor, path

    @property
    def network(self) -> nn.Module:
        return self.model

    @property
    def base(self) -> dict[str, str]:
        return {"path": self.path, "digest": digest(self.model)}

    @property
    def log_scale(self) -> nn.Parameter:
        return self.model.logit_scale

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """A folder that the model's own class and those of its towers open, adapters merged."""
        copy_as(merged(self.model), dtype).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        write_manifest(folder)
