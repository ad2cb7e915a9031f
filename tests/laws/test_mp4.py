"""Laws of the files that sampling writes: what goes in comes out, and a file is whole or not there."""

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageFont

from mmtrain.data.decode import Look, decode, encode_mp4
from mmtrain.data.world import render, scene
from mmtrain.errors import UserError
from mmtrain.evaluate.sheet import sheet
from mmtrain.sample.legible import legible
from mmtrain.sample.mp4 import contact_sheet, write_mp4, write_png


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return render(scene(0, "train", 3))


@pytest.mark.parametrize("fps", [25, 8, 12.5])
def test_frames_rate_and_tags_come_back(clip: np.ndarray, tmp_path: Path, fps: float):
    tags = {"title": "a red circle, “über” 50 % | x=1", "mmtrain_run": "0123abcd", "mmtrain_seed": "7"}
    path = write_mp4(clip, tmp_path / "clip.mp4", fps=fps, metadata=tags)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (stream.frames, float(stream.average_rate)) == (len(clip), fps)
        assert (context.name, context.pix_fmt, context.colorspace) == ("h264", "yuv420p", 1)
        assert (context.color_primaries, context.color_trc) == (1, 1)
        assert {name: container.metadata[name] for name in tags} == tags
    sample = decode("clip", {"mp4": path.read_bytes()}, Look())
    assert sample.frames.shape == clip.shape
    assert np.abs(sample.frames.astype(int) - clip).mean() < 2.0
    assert sample.fps == fps


def test_the_same_clip_gives_the_same_bytes():
    """x264's macroblock tree did not: on frames full of texture, every third file was another one."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(30, 226, (8, 8, 8, 3)).repeat(8, 1).repeat(8, 2)
    clip = (blocks + rng.integers(-30, 30, blocks.shape)).astype(np.uint8)
    assert len({encode_mp4(clip.copy(), 25) for _ in range(40)}) == 1


def test_the_index_is_in_front(clip: np.ndarray, tmp_path: Path):
    payload = write_mp4(clip, tmp_path / "clip.mp4").read_bytes()
    assert 0 < payload.index(b"moov") < payload.index(b"mdat")


def test_odd_sizes_are_refused_and_nothing_is_left(clip: np.ndarray, tmp_path: Path):
    with pytest.raises(UserError, match="even width and height"):
        write_mp4(clip[:, :63], tmp_path / "clip.mp4")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(clip: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_mp4(clip, tmp_path / "clip.mp4")
    before = path.read_bytes()

    def full(self: Path, payload: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write_mp4(clip[::-1], path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_picture_comes_back_with_its_text(clip: np.ndarray, tmp_path: Path):
    path = write_png(clip[0], tmp_path / "image.png", metadata={"prompt": "ein „roter“ Kreis"})
    with Image.open(path) as image:
        assert image.text == {"prompt": "ein „roter“ Kreis"}
        assert np.array_equal(np.asarray(image), clip[0])


def test_a_sheet_shows_first_and_last_frames_and_every_label(clip: np.ndarray, tmp_path: Path):
    other = np.full((3, 32, 48, 3), 200, np.uint8)
    labels = ["short", "a very long label " * 30]
    sheet = np.asarray(Image.open(contact_sheet([clip, other], labels, tmp_path / "sheet.png", title="run")))
    first, last = (np.repeat(np.repeat(clip[t], 2, 0), 2, 1) for t in (0, -1))
    assert _holds(sheet, first)
    assert _holds(sheet, last)
    assert _holds(sheet, np.full((128, 192, 3), 200, np.uint8))
    unlabelled = np.asarray(Image.open(contact_sheet([clip, other], ["", ""], tmp_path / "bare.png", title="run")))
    assert sheet.shape[0] > unlabelled.shape[0]
    assert (sheet < 60).all(-1).sum() > (unlabelled < 60).all(-1).sum()


def test_what_the_font_lacks_is_written_with_what_it_has():
    """Pillow's own font draws one and the same box for each of these."""
    assert (
        legible("ein „roter“ Kreis, …, un café – 2 × 3: Ångström, 漢字\n")
        == 'ein "roter“ Kreis, …, un cafe - 2 x 3: Angstrom, ??\n'
    )
    font = ImageFont.load_default(14)
    boxes = [bytes(font.getmask(letter)) for letter in "é漢\uffff"]
    assert len(set(boxes)) == 1
    assert not {bytes(font.getmask(letter)) for letter in legible("é漢")} & set(boxes)


def test_both_sheets_write_legibly(clip: np.ndarray, tmp_path: Path):
    contact = [contact_sheet([clip], [word], tmp_path / f"{n}.png", title=word) for n, word in enumerate(("é×", "ex"))]
    assert np.array_equal(*(np.asarray(Image.open(path)) for path in contact))
    assert np.array_equal(*(np.asarray(sheet([(word, {"base": clip})])) for word in ("é×", "ex")))


def test_stills_stand_side_by_side(clip: np.ndarray, tmp_path: Path):
    stills = [clip[t : t + 1] for t in range(5)]
    with Image.open(contact_sheet(stills, [str(t) for t in range(5)], tmp_path / "sheet.png")) as sheet:
        assert sheet.width > 4 * 4 * 64
        assert sheet.height < 3 * 4 * 64


@pytest.mark.parametrize("shape", [(2, 90, 4000, 3), (8, 576, 1024, 3), (1, 2160, 3840, 3), (1, 4, 3000, 3)])
def test_large_frames_are_reduced(tmp_path: Path, shape: tuple[int, ...]):
    clip = np.zeros(shape, np.uint8)
    with Image.open(contact_sheet([clip], ["wide"], tmp_path / "sheet.png")) as sheet:
        assert sheet.width < 2400


def _holds(sheet: np.ndarray, piece: np.ndarray) -> bool:
    h, w, _ = piece.shape
    rows, columns = np.nonzero((sheet[: -h + 1, : -w + 1] == piece[0, 0]).all(-1))
    return any(np.array_equal(sheet[y : y + h, x : x + w], piece) for y, x in zip(rows, columns, strict=True))
