"""A folder of somebody's images and clips as a `Source`, packed on first use. The packing itself is `pack.py`."""

import hashlib
from pathlib import Path

from mmtrain.data.buckets import Buckets
from mmtrain.data.index import IMAGES, VIDEOS
from mmtrain.data.pack import pack
from mmtrain.data.source import Source
from mmtrain.data.tables import TABLES
from mmtrain.errors import UserError


def folder(
    *,
    folder: str,
    shards: str = "data/shards/folders",
    caption: str | None = None,
    num_frames: int | None = None,
    stride: int = 1,
    fps: float | None = None,
    size: int | None = None,
    buckets: Buckets | None = None,
    max_bad_fraction: float = 0.0,
) -> Source:
    """Shards of a folder, written once per content below ``shards``, and the source that reads them.

    Args:
        folder: images and MP4 clips with captions beside them, in metadata.csv or in metadata.jsonl.
        shards: where the packed shards are kept, one folder per content.
        caption: template for files without a caption; ``{name}`` is the file's name in words. None: refuse them.
        num_frames, stride, fps, size, buckets: as for `Source`.
        max_bad_fraction: share of the files that may fail to decode; each is named.

    Raises:
        UserError: the folder is missing or empty, or what `pack` and `Source` refuse.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError("dataset.folder", folder, "a folder that exists", "check the path")
    target = Path(shards) / f"{root.resolve().name}-{_content(root, caption)}"
    if not target.exists():
        pack(root, target, caption_template=caption, max_bad_fraction=max_bad_fraction)
    return Source(
        shards=str(target),
        num_frames=num_frames,
        stride=stride,
        fps=fps,
        size=size,
        buckets=buckets,
        max_bad_fraction=max_bad_fraction,
    )


def _content(root: Path, caption: str | None) -> str:
    """Hash of the names and bytes that packing reads."""
    total = hashlib.blake2b(repr(caption).encode(), digest_size=4)
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        if path.suffix.lower().lstrip(".") in {*IMAGES, *VIDEOS, "txt"} or path.name in TABLES:
            total.update(f"{path.relative_to(root)}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    total.update(block)
    return total.hexdigest()
