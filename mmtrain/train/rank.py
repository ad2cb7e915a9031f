"""``python -m mmtrain.train.rank plan.json``: one process of a run that `launch.start` spread over several."""

import json
import os
import sys
from pathlib import Path

from omegaconf import OmegaConf

from mmtrain import config
from mmtrain.errors import Failure, Stopped, UserError
from mmtrain.train.fit import fit
from mmtrain.train.launch import follow_parent, tell
from mmtrain.train.resume import Ask


def main() -> int:
    follow_parent()
    file = Path(sys.argv[1])
    plan = json.loads(file.read_text())
    sys.argv = plan["command"]
    try:
        tell(file, {"run": str(fit(config.checked(OmegaConf.create(plan["config"])), Ask.of(plan["ask"])))})
    except UserError as error:
        parts = [error.where, error.came, error.wanted, error.fix]
        tell(file, {"error": parts, "failure": isinstance(error, Failure)})
        return error.status
    except Stopped as stop:
        tell(file, {"text": str(stop), "status": stop.status})
        return stop.status
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # threads of a broken process group must not keep a rank alive
