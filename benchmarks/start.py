"""How long until something happens: help, the import, a check, and the first step of a training, from the shell.

    make bench-start

Each is a process of its own, started afresh, in turn. Wall time is what a user waits; processor time is what it costs
on any machine that is less busy, or busier, than this one.
"""

import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.report import Report
from benchmarks.rounds import rounds_asked, spread
from mmtrain.data import world
from mmtrain.data.shards import ShardWriter

ROUNDS = rounds_asked(3)
MMTRAIN = [sys.executable, "-m", "mmtrain"]
TRAIN = ["trainer.steps=1000", "trainer.log_every=1", "trainer.batch_size=4", "trainer.threads=1", "logger=null"]


def write(folder: Path) -> None:
    """Eight pictures with captions."""
    rng = world.rng_of("bench start")
    with ShardWriter(folder, max_samples=8) as writer:
        for i in range(8):
            scene = world.scene(0, "train", i)
            Image.fromarray(world.render(scene, num_frames=1)[0]).save(out := io.BytesIO(), "PNG")
            writer.write(f"{i:06d}", {"png": out.getvalue(), "txt": world.caption(scene, rng).encode()})


def ended(words: list[str], until: str | None = None) -> tuple[float, float]:
    """Wall and processor seconds of a command, to its end or to a line that holds ``until``; it is then killed.

    Raises:
        RuntimeError: it ended otherwise.
    """
    start = time.perf_counter()
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        found = until is None
        for line in process.stdout:
            if until is not None and until in line:
                found = True
                break
        if until is not None:
            wall, cpu = time.perf_counter() - start, _cpu(process.pid)
            process.kill()
            process.wait()
        else:
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            wall, cpu = time.perf_counter() - start, used.ru_utime + used.ru_stime
            found &= process.returncode == 0
    if not found:
        raise RuntimeError(f"{' '.join(words)} ended with status {process.returncode}")
    return wall, cpu


def _cpu(process: int) -> float:
    """Processor seconds so far of a running process, where the system tells them."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return float("nan")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    report = Report("start")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "shards")
        data = ["dataset=shards", f"dataset.shards={folder / 'shards'}", f"folder={folder / 'runs'}"]
        commands: dict[str, tuple[list[str], str | None, float | None]] = {
            "mmtrain --help": ([*MMTRAIN, "--help"], None, 0.5),
            "import mmtrain": ([sys.executable, "-c", "import mmtrain"], None, None),
            "import torch, for comparison": ([sys.executable, "-c", "import torch"], None, None),
            "mmtrain check sd_lora": ([*MMTRAIN, "check", "sd_lora", *data], None, None),
            "mmtrain train sd_lora, to its first step": (
                [*MMTRAIN, "train", "sd_lora", *TRAIN, *data, "cache=null"], "sd_lora 1/", 10.0,
            ),
            "mmtrain train sd_lora, cached, to its first step": (
                [*MMTRAIN, "train", "sd_lora", *TRAIN, *data, f"cache={folder / 'cache'}"], "sd_lora 1/", 10.0,
            ),
        }  # fmt: skip
        found: dict[str, list[tuple[float, float]]] = {what: [] for what in commands}
        for turn in range(ROUNDS + 1):
            for what, (words, until, _) in commands.items():
                seconds = ended(words, until)
                if turn:  # the first fills the disk's cache, and writes the encoder's
                    found[what].append(seconds)
    rows: list[dict[str, Any]] = []
    for what, times in found.items():
        wall, cpu = ([time[i] for time in times] for i in (0, 1))
        aim = commands[what][2]
        kept = "" if aim is None else f"< {aim:g} s"
        met = "" if aim is None else "yes" if statistics.median(wall) < aim else "no"
        rows.append({"what": what, "wall s": spread(wall, ".2f"), "processor s": spread(cpu, ".2f"), "aim": kept})
        rows[-1]["met"] = met
    report.table(f"from the shell, min – median – max of {ROUNDS} rounds in turn", rows)
    report.write()


if __name__ == "__main__":
    main()
