"""Previews: while a run trains, the code of `mmtrain sample` makes clips with the weights that would be exported."""

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger

from mmtrain.backbone.sd import StableDiffusion
from mmtrain.backbone.svd import StableVideoDiffusion
from mmtrain.errors import UserError
from mmtrain.sample.generate import check_start, clips, images, starts_from_image
from mmtrain.sample.mp4 import contact_sheet, write_mp4
from mmtrain.sample.video import VideoSampler
from mmtrain.train.loggers import Loggers
from mmtrain.train.module import TrainModule


class Preview(pl.Callback):
    """Samples fixed prompts with fixed seeds before the first step and every n steps, base beside adapted.

    Args:
        every: optimizer steps between previews.
        prompts: what to sample.
        sd: folder or hub id of the Stable Diffusion that draws first frames for a video model, or None for text alone.
        seed: of the first prompt; the next ones count on.
        num_inference_steps: of sampling.
        guidance_scale: of sampling; None: the model's own.
        loggers: that are shown them; passed by `fit`.
    """

    def __init__(
        self,
        *,
        every: int,
        prompts: list[str],
        loggers: Loggers,
        sd: str | None = None,
        seed: int = 0,
        num_inference_steps: int = 10,
        guidance_scale: float | None = None,
    ) -> None:
        if every < 1 or not prompts:
            raise UserError("preview", f"every {every}, {len(prompts)} prompts", "at least one each", "correct them")
        self.every, self.prompts, self.seed = every, prompts, seed
        self.loggers = loggers
        self.steps, self.guidance = num_inference_steps, guidance_scale
        self.drawing = None if sd is None else StableDiffusion(path=sd)
        self.folder: Path | None = None
        self.base: np.ndarray | None = None
        self.first: np.ndarray | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero:
            self.folder = Path(str(trainer.default_root_dir)) / "previews"
            self.folder.mkdir(exist_ok=True)
            self.base = self._sample(pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        last = pl_module.step == pl_module.steps
        if trainer.is_global_zero and (last or pl_module.step % self.every == 0):
            with pl_module.averaged():
                clips = self._sample(pl_module)
            self._write(trainer, pl_module.step, clips)

    def _sample(self, module: TrainModule) -> np.ndarray:
        """Clips uint8 ``[b t h w c]``; pictures are clips of one frame."""
        how: dict[str, Any] = {"num_inference_steps": self.steps}
        how |= {} if self.guidance is None else {"guidance_scale": self.guidance}
        how["seeds"] = [self.seed + i for i in range(len(self.prompts))]
        backbone = module.backbone
        makes = getattr(backbone, "makes", None)
        if makes == "image":
            return images(backbone=backbone, prompts=self.prompts, **how)[:, None]
        if makes != "video":
            raise UserError("preview", f"a {type(backbone).__name__}", "a model that samples", "set preview=null")
        if starts_from_image(backbone) and self.drawing is None:
            wanted = "who draws the first frames that this model starts from"
            raise UserError("preview.sd", "null", wanted, "name a Stable Diffusion, or set preview=null")
        if self.drawing is not None and self.first is None:
            self.first = images(backbone=self.drawing, prompts=self.prompts, seeds=how["seeds"], **self._size(backbone))
        if not isinstance(backbone, StableVideoDiffusion):
            return clips(backbone=backbone, prompts=self.prompts, images=self.first, **how)
        # Adapters that bring no text are trained on the first frame's token.
        reads = backbone.bridge is not None or self.first is None
        how["tokens"] = "text" if reads else "image"
        return VideoSampler(backbone=backbone).video(prompts=self.prompts, images=self.first, **how)

    @staticmethod
    def _size(backbone: Any) -> dict[str, Any]:
        """Of first frames: as the model that draws them has it, save for one that starts from pictures of clips' size.

        Raises:
            UserError: a model that starts from text alone.
        """
        if isinstance(backbone, StableVideoDiffusion):
            return {}
        check_start(backbone, given=True)
        height, width = backbone.size
        return {"height": height, "width": width}

    def _write(self, trainer: pl.Trainer, step: int, clips: np.ndarray) -> None:
        assert self.folder is not None
        assert self.base is not None
        pairs = [clip for both in zip(self.base, clips, strict=True) for clip in both]
        labels = [f"{who}: {prompt}" for prompt in self.prompts for who in ("base", f"step {step}")]
        sheet = self.folder / f"step-{step:06d}.png"
        contact_sheet(pairs, labels, sheet)
        videos = [self.folder / f"step-{step:06d}-{i}.mp4" for i in range(len(clips))] if clips.shape[1] > 1 else []
        for path, clip, prompt in zip(videos, clips, self.prompts, strict=False):
            write_mp4(clip, path, metadata={"comment": f"AI-generated preview: {prompt}"})
        self.loggers.each(lambda logger: _send(logger, sheet, videos, self.prompts, step))


def _send(logger: Any, sheet: Path, videos: list[Path], prompts: list[str], step: int) -> None:
    """Pictures to TensorBoard; pictures and videos to Weights & Biases."""
    if isinstance(logger, TensorBoardLogger):
        from PIL import Image

        logger.experiment.add_image("previews", np.asarray(Image.open(sheet).convert("RGB")), step, dataformats="HWC")
    elif isinstance(logger, WandbLogger):
        import wandb

        shown: dict[str, Any] = {"previews": wandb.Image(str(sheet))}
        shown |= {
            f"video {i}": wandb.Video(str(v), caption=p, format="mp4")
            for i, (v, p) in enumerate(zip(videos, prompts, strict=False))
        }
        logger.experiment.log(shown, step=step)
