"""A folder as people have it: forty files of every kind and size, three of them broken; and long lists of prompts."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from mmtrain.data.folder import folder
from mmtrain.data.pack import pack
from mmtrain.errors import UserError
from mmtrain.evaluate.cases import from_file
from mmtrain.sample.write import read_prompts


def noise(i: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, (height, width, 3), np.uint8)


def clip(times: list[int], path: Path) -> None:
    """Frames shown at these times, in hundredths of a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=100)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 100)
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(noise(i, 64, 96), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture
def forty(tmp_path: Path) -> Path:
    root = tmp_path / "forty"
    root.mkdir()
    for i in range(30):
        height, width = ((80, 120), (120, 80), (64, 64))[i % 3]
        Image.fromarray(noise(i, height, width)).save(root / f"shot-{i:02d}.jpg")
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(noise(30, 70, 100)).save(root / "turned.jpg", exif=exif)
    Image.fromarray(np.dstack([noise(31, 70, 70), np.full((70, 70), 9, np.uint8)])).save(root / "clear.png")
    Image.fromarray(noise(32, 70, 70)).convert("CMYK").save(root / "print.jpg")
    Image.fromarray(np.arange(70 * 70, dtype=np.uint16).reshape(70, 70) * 13).save(root / "deep.png")
    clip([0, 4, 9, 30, 31, 80], root / "uneven.mp4")
    clip([0], root / "one.mp4")
    Image.fromarray(noise(36, 66, 66)).save(root / "two.png")
    (root / "two.txt").write_text("a red mug\na mug, seen from above\n")
    half = io.BytesIO()
    Image.fromarray(noise(37, 90, 90)).save(half, "PNG")
    (root / "cut.png").write_bytes(half.getvalue()[: len(half.getvalue()) // 2])
    (root / "empty.jpg").write_bytes(b"")
    (root / "word.mp4").write_bytes(b"this is a letter")
    return root


def test_what_decodes_is_learnt_from_and_the_rest_is_named(
    forty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    how = {"folder": str(forty), "shards": str(tmp_path / "shards"), "caption": "{name}, in our style", "size": 64}
    source = folder(**how, num_frames=1, max_bad_fraction=0.2)
    assert len(source) == 37
    said = capsys.readouterr().err
    broken = ("cut.png", "empty.jpg", "word.mp4")
    assert [line.split(":")[0] for line in said.splitlines()] == [f"left out {name}" for name in broken]
    samples = {source.keys[i]: source.sample(i) for i in range(len(source))}
    assert {sample.frames.shape for sample in samples.values()} == {(1, 64, 64, 3)}
    assert samples["two"].captions == ("a red mug", "a mug, seen from above")
    assert samples["turned"].captions == ("turned, in our style",)
    assert samples["clear"].frames.mean() > 240, "nearly all of the white below shows"
    assert not source.replaced


def test_past_a_fifth_it_stops(forty: Path, tmp_path: Path):
    for i in range(6):
        (forty / f"bad-{i}.png").write_bytes(b"no picture")
    for i in range(20):
        (forty / f"shot-{i:02d}.jpg").unlink()
    with pytest.raises(UserError, match="9 of 26 files do not decode"):
        folder(folder=str(forty), shards=str(tmp_path / "shards"), caption="{name}", max_bad_fraction=0.2)
    assert not (tmp_path / "shards").exists() or not list((tmp_path / "shards").iterdir())


def test_clips_alone_at_their_own_times(forty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = folder(
        folder=str(forty),
        shards=str(tmp_path / "shards"),
        caption="{name}",
        num_frames=5,
        fps=10,
        where=["num_frames>=2"],
        max_bad_fraction=0.5,
    )
    assert source.keys == ["uneven"]
    named, counted = capsys.readouterr().err.splitlines()
    assert named.startswith("left out word.mp4: the .mp4 does not decode"), "nobody knows how many frames it has"
    assert counted == "left out 38 files by dataset.where=['num_frames>=2']"
    sample = source.sample(0, draw=0.0)  # from the clip's beginning
    assert sample.frames.shape == (5, 64, 96, 3)
    drawn = np.stack([noise(i, 64, 96) for i in range(6)]).astype(float)
    shown = [int(np.abs(drawn - frame).mean((1, 2, 3)).argmin()) for frame in sample.frames]
    assert shown == [0, 2, 3, 3, 4], "the nearest in time to 0, 0.1, 0.2, 0.3 and 0.4 s"


@pytest.mark.parametrize(
    ("clause", "broken"),
    [
        ("num_frames>=2", ["word.mp4"]),
        ("num_frames==1", ["cut.png", "empty.jpg", "word.mp4"]),
        ("fps>=20", ["word.mp4"]),
        ("width>=80", ["cut.png", "empty.jpg", "word.mp4"]),
        ("words>=9", []),
    ],
)
def test_what_cannot_be_judged_is_not_left_out_unseen(forty: Path, tmp_path: Path, clause: str, broken: list[str]):
    """A damaged header tells no frames and no size: no clause may take that for a clip that is too short."""
    for i in range(30):
        (forty / f"shot-{i:02d}.txt").write_text("one two three four five six seven eight nine ten\n")
    done = pack(forty, tmp_path / "out", caption_template="{name}", where=[clause], max_bad_fraction=0.9)
    assert sorted(done.bad) == broken
    assert done.samples + done.missed == 40 - len(broken)
    assert f"left out by `where`: {done.missed}" in done.text()


def test_a_clip_that_cannot_be_judged_counts(forty: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"1 of 2 files do not decode \(word.mp4"):
        pack(forty, tmp_path / "out", caption_template="{name}", where=["num_frames>=2"], max_bad_fraction=0.2)


def test_a_thousand_prompts(tmp_path: Path):
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(f"a mug, number {i}" for i in range(1000)) + "\n\n")
    assert len(read_prompts(file)) == 1000
    cases = from_file(file, seed=0)
    assert len({case.seed for case in cases}) == len({case.name for case in cases}) == 1000
