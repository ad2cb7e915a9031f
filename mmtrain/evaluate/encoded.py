"""The metric of encoding: what the MP4 that is written loses against its raw frames, by PSNR, SSIM and VMAF.

VMAF (Netflix) is run by an ffmpeg that lists libvmaf among its filters: one on the path, or the one that comes with
`imageio-ffmpeg` (`pip install mmtrain[vmaf]`). It knows no chroma, and a shift by one frame costs most of the score, so
frames are counted and aligned before anything is compared.
"""

import json
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np

from mmtrain.data.decode import Look, decode, encode_mp4
from mmtrain.errors import UserError
from mmtrain.evaluate.cases import Case, Numbers

_FPS = 25
_WINDOW = 8  # pixels of SSIM's window
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2  # Wang et al. 2004
_SMALLEST = 160  # pixels; VMAF's filters need some, smaller clips are enlarged by a whole number


class Encoded:
    """``PSNR`` (dB), ``SSIM`` and ``VMAF`` (0 to 100) of the encoded clip against its raw frames.

    Args:
        crf: of H.264, as files are written.
        vmaf: whether it is wanted; where no ffmpeg has it, that is an error and not a missing row.
    """

    def __init__(self, *, crf: int = 16, vmaf: bool = True) -> None:
        self.crf, self.vmaf = crf, vmaf
        if vmaf:
            ffmpeg_with_vmaf()

    def __call__(self, frames: np.ndarray, case: Case) -> Numbers:
        """Numbers of frames uint8 ``[t h w c]``."""
        payload = encode_mp4(frames, _FPS, crf=self.crf)
        back = decode(case.name, {"mp4": payload}, Look()).frames
        check_aligned(frames, back)
        found: Numbers = {"PSNR": psnr(frames, back), "SSIM": ssim(frames, back)}
        return {**found, "VMAF": vmaf(frames, back)} if self.vmaf else found


def check_aligned(reference: np.ndarray, other: np.ndarray) -> None:
    """Refuse clips uint8 ``[t h w c]`` that are not the same frames: another count, another size, or shifted in time.

    Raises:
        UserError: with which it is.
    """
    if reference.shape != other.shape:
        came = f"{list(other.shape)} against {list(reference.shape)}"
        raise UserError("comparison", came, "the same number of frames of the same size", "encode the whole clip")
    small = [clip[:, ::4, ::4].astype(np.float32) for clip in (reference, other)]
    if len(reference) < 3 or not np.abs(np.diff(small[0], axis=0)).any():
        return
    at = {shift: _apart(small[0], small[1], shift) for shift in (0, -1, 1)}
    best = min(at, key=lambda shift: at[shift])
    if best:
        came = f"a clip that fits better {abs(best)} frame {'later' if best > 0 else 'earlier'}"
        raise UserError("comparison", came, "frames that belong together", "align the clips")


def _apart(reference: np.ndarray, other: np.ndarray, shift: int) -> float:
    first, second = reference[max(0, -shift) : len(reference) - max(0, shift)], other[max(0, shift) :]
    return float(np.abs(first - second[: len(first)]).mean())


def psnr(reference: np.ndarray, other: np.ndarray) -> float:
    """Peak signal to noise in dB of uint8 arrays; 100 where they are equal."""
    error = float(np.mean((reference.astype(np.float64) - other) ** 2))
    return 100.0 if error == 0 else min(100.0, 10 * float(np.log10(255**2 / error)))


def ssim(reference: np.ndarray, other: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004) of the luma of uint8 ``[t h w c]``, over windows of 8 × 8 that touch."""
    luma = np.array([0.2126, 0.7152, 0.0722])
    a, b = (_windows(clip.astype(np.float64) @ luma) for clip in (reference, other))
    mean_a, mean_b = a.mean(-1), b.mean(-1)
    common = (a * b).mean(-1) - mean_a * mean_b
    top = (2 * mean_a * mean_b + _C1) * (2 * common + _C2)
    return float((top / ((mean_a**2 + mean_b**2 + _C1) * (a.var(-1) + b.var(-1) + _C2))).mean())


def _windows(planes: np.ndarray) -> np.ndarray:
    """``[t h w]`` in windows, ``[t rows columns pixels]``."""
    t, height, width = planes.shape
    rows, columns = height // _WINDOW, width // _WINDOW
    cut = planes[:, : rows * _WINDOW, : columns * _WINDOW].reshape(t, rows, _WINDOW, columns, _WINDOW)
    return cut.swapaxes(2, 3).reshape(t, rows, columns, -1)


def vmaf(reference: np.ndarray, other: np.ndarray) -> float:
    """Mean VMAF of uint8 ``[t h w c]`` against its reference, frames already aligned.

    Raises:
        UserError: no ffmpeg here has libvmaf, or it fails.
    """
    times = -(-_SMALLEST // min(reference.shape[1:3]))
    height, width = (side * times for side in reference.shape[1:3])
    with tempfile.TemporaryDirectory() as folder:
        for name, clip in (("other", other), ("reference", reference)):
            (Path(folder) / f"{name}.rgb").write_bytes(clip.repeat(times, 1).repeat(times, 2).tobytes())
        raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(_FPS)]
        luma = (
            "scale=out_color_matrix=bt709:flags=bicubic+accurate_rnd+full_chroma_int,format=yuv420p"  # the file's own
        )
        graph = f"[0:v]{luma}[a];[1:v]{luma}[b];[a][b]libvmaf=log_fmt=json:log_path=vmaf.json:n_threads=1"
        words = [ffmpeg_with_vmaf(), "-loglevel", "error", *raw, "-i", "other.rgb", *raw, "-i", "reference.rgb"]
        words += ["-lavfi", graph, "-f", "null", "-"]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["no word why"])[-1]
            raise UserError("VMAF", f"ffmpeg failed ({said})", "a score", "set metric encoded's vmaf to false")
        return float(json.loads((Path(folder) / "vmaf.json").read_text())["pooled_metrics"]["vmaf"]["mean"])


@lru_cache(maxsize=1)
def ffmpeg_with_vmaf() -> str:
    """An ffmpeg that lists libvmaf among its filters.

    Raises:
        UserError: there is none.
    """
    for candidate in _candidates():
        listed = subprocess.run([candidate, "-hide_banner", "-filters"], capture_output=True, text=True)
        if " libvmaf " in listed.stdout:
            return candidate
    fix = "pip install 'mmtrain[vmaf]', or set metric encoded's vmaf to false"
    raise UserError("VMAF", "no ffmpeg with libvmaf here", "one on the path, or imageio-ffmpeg's", fix)


def _candidates() -> list[str]:
    found = [path for path in (shutil.which("ffmpeg"),) if path is not None]
    try:
        import imageio_ffmpeg
    except ImportError:
        return found
    return [*found, imageio_ffmpeg.get_ffmpeg_exe()]
