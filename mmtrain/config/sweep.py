"""What a sweep tells at its beginning and its end, as a callback of Hydra's (`conf/config.yaml`). It runs no job."""

from pathlib import Path
from typing import Any

import yaml
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

FOUND = "optimization_results.yaml"
"""What a sweeper that searches leaves in the sweep's folder."""


class Told(Callback):
    """Says where a sweep's files are, and what one that searches has found: Hydra's own log is off."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        elsewhere = config.hydra.launcher.get("submitit_folder")
        jobs = f"; what its jobs write: {Path(elsewhere).parent}" if elsewhere else ""
        print(f"sweep: {config.hydra.sweep.dir}{jobs}", flush=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        file = Path(config.hydra.sweep.dir) / FOUND
        if not file.is_file():
            return
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
        if "best_params" in found:
            chosen = " ".join(f"{key.lstrip('+')}={value}" for key, value in found["best_params"].items())
            print(f"best of the sweep: {chosen}, loss {found['best_value']:.4g} ({file})", flush=True)
