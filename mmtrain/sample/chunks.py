"""Long video: clips of the model's own length, each begun from the end of the one before, joined without a seam.

Frames are handed over as floats, never as bytes or files. What codec and network did to the colours of the frame that
they were handed is undone, and the colours at the end of each clip are brought back to the first frame's, since either
would add up: a video whose colours are meant to change is not made for this. The rest of what they redrew otherwise is
brought in little by little, along with what moves. Where clips share more than one frame those are blended. `seams` and
`drift` measure what is left.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmtrain.errors import UserError
from mmtrain.rng import key
from mmtrain.sample.carried import carried
from mmtrain.sample.generate import Progress
from mmtrain.sample.video import VideoSampler

OVERLAP = 1
"""Frames that chunks share unless more are asked for: the last is handed over."""

_SMALL = 1e-3  # standard deviation of a channel below which its contrast is left alone
_GAIN = 1.25  # by which contrast is changed at most, up or down


def long_video(
    sampler: VideoSampler,
    *,
    num_frames: int,
    overlap: int = OVERLAP,
    seeds: Sequence[int],
    progress: Progress | None = None,
    **asked: Any,
) -> np.ndarray:
    """Clips float32 ``[b t h w c]`` in [0, 1], longer than the network was made for.

    Args:
        sampler: of the clips.
        num_frames: of the whole.
        overlap: frames that a clip shares with the one before; 1 hands over the last frame.
        seeds: one per clip.
        progress: told each denoising step, (done, in all).
        asked: further arguments of `VideoSampler.frames`; ``images`` and ``first_frames`` are of the first clip.

    Raises:
        UserError: an overlap that leaves nothing new.
    """
    length = int(sampler.pipeline.unet.config.num_frames)
    check_overlap(overlap, length)
    count, shape = chunks(num_frames, length, overlap), _shape(sampler, length, asked)
    whole = noise = None
    for number in range(count):
        noise = _noise(shape, seeds, number, noise, overlap)
        told = None if progress is None else _part(progress, number, count)
        if whole is not None:
            asked |= {"images": np.ascontiguousarray(whole[:, -overlap]), "first_frames": "none"}
        made = sampler.frames(seeds=list(seeds), num_frames=length, latents=noise, progress=told, **asked)
        whole = made if whole is None else joined(whole, made, overlap, whole[:, 0])
    assert whole is not None, "there is at least one chunk"
    return whole[:, :num_frames]


def check_overlap(overlap: int, length: int) -> None:
    """Raises UserError for an overlap that leaves nothing new in clips of a length."""
    if not 1 <= overlap < length:
        wanted = f"at least 1 and fewer than the {length} frames of a clip"
        raise UserError("--overlap", f"{overlap} frames", wanted, "choose another")


def chunks(num_frames: int, length: int, overlap: int) -> int:
    """How many clips of a length make a number of frames."""
    return 1 + max(0, -(-(num_frames - length) // (length - overlap)))


def joined(before: np.ndarray, after: np.ndarray, overlap: int, anchor: np.ndarray) -> np.ndarray:
    """Two clips ``[b t h w c]``: the second's colours corrected, the frames that both show blended, or the second led
    on from a single one.

    Args:
        before, after: the clips.
        overlap: frames that both show.
        anchor: the frame whose colours the end of the second is brought to, ``[b h w c]``.
    """
    shared = before[:, -overlap:]
    after = matched(after, after[:, :overlap], shared, anchor[:, None])
    if overlap == 1:
        return np.concatenate([before, _led_on(shared[:, 0], after)], 1)
    weight = (np.arange(overlap, dtype=np.float32) / (overlap - 1)).reshape(1, -1, 1, 1, 1)
    blend = shared * (1 - weight) + after[:, :overlap] * weight
    return np.concatenate([before[:, :-overlap], blend, after[:, overlap:]], 1)


def _led_on(shared: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The frames ``[b t-1 h w c]`` that follow a frame ``[b h w c]``, of a clip ``[b t h w c]`` that begins with a copy
    of it.

    The second frame would be the shared one moved as the copy moves. What the clip's own lacks of that, moved on with
    it from frame to frame, is faded out until the clip's end. So what comes into view just there fades in.
    """
    first, *own = torch.from_numpy(np.moveaxis(after, -1, 2)).unbind(1)
    made, before = [], first
    lack = torch.from_numpy(np.moveaxis(shared, -1, 1))
    for t, frame in enumerate(own, 1):
        lack = carried(lack, before, frame)
        if t == 1:
            lack = lack - frame
        made.append(frame + lack * (1 - t / len(own)))
        before = frame
    return np.moveaxis(torch.stack(made, 1).clamp(0, 1).numpy(), 2, -1)


def matched(frames: np.ndarray, copy: np.ndarray, original: np.ndarray, anchor: np.ndarray) -> np.ndarray:
    """Frames ``[b t h w c]`` with each channel's gain and offset corrected: at the first frame by what turns a copy's
    mean and deviation into its original's, at the last by what turns that frame's into the anchor's, between them
    evenly from one to the other. So neither a seam shows nor does an error add up."""
    (gain, offset), (last_gain, last_offset) = _affine(copy, original), _affine(frames[:, -1:], anchor)
    time = np.linspace(0, 1, frames.shape[1], dtype=np.float32).reshape(1, -1, 1, 1, 1)
    gain, offset = gain + (last_gain - gain) * time, offset + (last_offset - offset) * time
    return np.clip(frames * gain + offset, 0, 1).astype(np.float32)


def _affine(copy: np.ndarray, original: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gain and offset ``[b 1 1 1 c]`` that give a copy's channels the mean and deviation of the original's."""
    (mean, deviation), (wanted, spread) = (
        (np.mean(frames, (1, 2, 3), keepdims=True), np.std(frames, (1, 2, 3), keepdims=True))
        for frames in (copy, original)
    )
    gain = np.where(deviation > _SMALL, np.clip(spread / np.maximum(deviation, _SMALL), 1 / _GAIN, _GAIN), 1.0)
    return gain, wanted - mean * gain


def _shape(sampler: VideoSampler, length: int, asked: Mapping[str, Any]) -> tuple[int, ...]:
    """Of a clip's latents, ``[t c h w]``."""
    height, width = (asked.get(name) or sampler.side for name in ("height", "width"))
    factor, channels = int(sampler.pipeline.vae_scale_factor), int(sampler.pipeline.vae.config.latent_channels)
    return length, channels, height // factor, width // factor


def _noise(shape: tuple[int, ...], seeds: Sequence[int], number: int, before: Tensor | None, overlap: int) -> Tensor:
    """Noise ``[b t c h w]`` of a clip; the frames that it shares with the one before have the same noise."""
    numbers = (key("chunk", seed, number) % (1 << 63) for seed in seeds)
    fresh = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(n)) for n in numbers])
    return fresh if before is None else torch.cat([before[:, -overlap:], fresh[:, overlap:]], 1)


def _part(progress: Progress, number: int, count: int) -> Progress:
    return lambda step, steps: progress(number * steps + step, count * steps)


# what is left ---------------------------------------------------------------------------------------------------------


def seams(frames: np.ndarray, length: int, overlap: int) -> float:
    """The largest change from frame to frame where clips meet, over the median change elsewhere, of uint8 or float
    ``[t h w c]``: 1 is none that shows. 0 where nothing moves at all."""
    change = np.abs(np.diff(frames.astype(np.float32), axis=0)).mean((1, 2, 3))
    meeting = np.arange(length - 1, len(change), length - overlap)
    elsewhere = np.delete(change, meeting)
    if not len(meeting) or not change.any():
        return 0.0
    return float(change[meeting].max() / max(float(np.median(elsewhere)), 1e-6))


def drift(frames: np.ndarray) -> dict[str, float]:
    """How far the end of uint8 ``[t h w c]`` is from its beginning: the first 15 % of frames against the last, in
    levels of 255 of colour (the worst channel's mean), of contrast (its deviation) and of sharpness (the mean step to
    the next pixel)."""
    part = max(1, round(0.15 * len(frames)))
    both = frames[:part].astype(np.float32), frames[-part:].astype(np.float32)
    colour, contrast = (
        float(np.abs(f(both[1], axis=(0, 1, 2)) - f(both[0], axis=(0, 1, 2))).max()) for f in (np.mean, np.std)
    )
    first, last = (float(np.abs(np.diff(clip, axis=2)).mean()) for clip in both)
    return {"colour": colour, "contrast": contrast, "sharpness": abs(last - first)}
