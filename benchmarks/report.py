"""What a benchmark says: a table on the terminal, and a file with the numbers, versions and hardware behind it."""

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.rounds import Seconds, ratios, spread

PACKAGES = ("torch", "pytorch-lightning", "diffusers", "transformers", "peft", "accelerate", "webdataset", "numpy")
FOLDER = Path(os.environ.get("BENCH_OUT", "runs/bench"))


class Report:
    """The tables of one benchmark.

    Args:
        name: of the file ``runs/bench/<name>.json`` (``BENCH_OUT`` says another folder).
    """

    def __init__(self, name: str) -> None:
        self.name, self.console, self.parts = name, Console(width=150), {}
        self.started, self.load = datetime.now(UTC), os.getloadavg()

    def arms(
        self, title: str, found: Mapping[str, Seconds], *, unit: str, aims: Mapping[str, float] | None = None
    ) -> None:
        """A table of arms, each as many times as fast as the first.

        Args:
            found: seconds per unit.
            unit: what is done, such as ``step``; ``sample`` is shown by rate.
            aims: for the ratio by wall time, at least.
        """
        by_rate = unit == "sample"
        table = Table("arm", "samples/s" if by_rate else f"s/{unit}", "× by wall time", "× by processor", "aim")
        table.title = (
            f"{title}; min – median – max of {len(next(iter(found.values())).wall)} rounds in turn, one thread"
        )
        base = next(iter(found.values()))
        for name, seconds in found.items():
            shown = [1 / s for s in seconds.wall] if by_rate else seconds.wall
            times = [spread(ratios(getattr(base, c), getattr(seconds, c)), ".2f") for c in ("wall", "cpu")]
            aim = f"≥ {aims[name]:g}" if aims and name in aims else ""
            table.add_row(name, spread(shown, ".1f" if by_rate else ".4f"), *times, aim)
        self.say(table)
        self.parts[title] = {
            name: {
                "wall_seconds": seconds.wall,
                "cpu_seconds": seconds.cpu,
                "median_ratio_wall": statistics.median(ratios(base.wall, seconds.wall)),
                "median_ratio_cpu": statistics.median(ratios(base.cpu, seconds.cpu)),
            }
            for name, seconds in found.items()
        }

    def table(self, title: str, rows: list[dict[str, Any]]) -> None:
        """A table of rows with the same columns."""
        table = Table(*rows[0], title=title)
        for row in rows:
            table.add_row(*(_shown(value) for value in row.values()))
        self.say(table)
        self.parts[title] = rows

    def say(self, what: Any) -> None:
        self.console.print(what)

    def write(self) -> Path:
        """The file."""
        FOLDER.mkdir(parents=True, exist_ok=True)
        path = FOLDER / f"{self.name}.json"
        told = {"benchmark": self.name, "started": self.started.isoformat(timespec="seconds"), **machine()}
        told |= {"load_before": self.load, "load_after": os.getloadavg(), "results": self.parts}
        path.write_text(json.dumps(told, indent=1) + "\n")
        self.console.print(f"written: {path}")
        return path


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def machine() -> dict[str, Any]:
    """Versions and hardware."""
    told: dict[str, Any] = {"python": platform.python_version(), "versions": {}}
    for package in PACKAGES:
        try:
            told["versions"][package] = version(package)
        except PackageNotFoundError:
            told["versions"][package] = None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    told["hardware"] = {"processor": _processor(), "cores": cores, "threads": torch.get_num_threads()}
    told["hardware"]["memory_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if torch.cuda.is_available():
        told["hardware"]["gpu"] = torch.cuda.get_device_name()
        told["versions"]["cuda"] = torch.version.cuda
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    told["commit"] = done.stdout.strip() or None
    return told


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
