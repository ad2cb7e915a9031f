"""Runs a training once whole and once killed many times, in children of one clean process that has imported everything.

    python -m tests.resume.launcher < plan.json

The plan: ``words`` (of the command line, without folder), ``folder``, ``kills`` (a list of step and, true, whether to
wait for a checkpoint that is being written), ``workers`` and ``ranks`` (for each start), ``seed``. Beside the runs it
writes ``whole.txt`` and ``killed.txt`` (of rank 1, ``killed-1.txt``): for each batch that was trained on its step, a
digest of each sample's key, position and caption, and the loss in hex. Batches that were done again after a kill are in
it each time.
"""

import hashlib
import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from mmtrain import cli
from mmtrain.backbone import clip, sd, svd  # noqa: F401  (imported once, before the children are forked)
from mmtrain.run import checkpoints
from mmtrain.train import checkpoint, fit  # noqa: F401
from mmtrain.train.callbacks import Log

PATIENCE = 600  # seconds for any one start
SLOW = 0.03  # seconds more for each file of a checkpoint, so that kills inside its writing are many


def start_ranks(words: list[str], told: Path, ranks: int) -> list[int]:
    """Children that train together, as torchrun starts them."""
    if ranks == 1:
        return [start(words, told, {})]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "NODE_RANK": "0", "GROUP_RANK": "0"}
    world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "resume"}
    children = []
    for rank in range(ranks):
        file = told.with_stem(f"{told.stem}-{rank}") if rank else told
        own = {**world, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        children.append(start([*words, f"trainer.devices={ranks}"], file, own))
    return children


def start(words: list[str], told: Path, env: dict[str, str]) -> int:
    """A child in a process group of its own; its output goes beside the batches' file."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    os.environ.update(env)
    out = os.open(told.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(out, 1)
    os.dup2(out, 2)
    code = 1
    try:
        _tell_batches(told)
        _write_slowly()
        code = cli.main(words) or 0
    except SystemExit as why:
        code = int(why.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _tell_batches(told: Path) -> None:
    file = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    ours = Log.on_train_batch_end

    def wrapped(self: Log, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        rows = zip(batch.keys, batch.positions, batch.captions, strict=True)
        digests = [hashlib.sha256(json.dumps(row).encode()).hexdigest()[:16] for row in rows]
        loss = float(module.outcome.per_sample.detach().mean()).hex()
        os.write(file, f"{module.step} {','.join(digests)} {loss}\n".encode())
        ours(self, trainer, module, outputs, batch, batch_idx)

    Log.on_train_batch_end = wrapped  # type: ignore[method-assign]


def _write_slowly() -> None:
    ours = checkpoint._tensors

    def slow(path: Path, tensors: dict[str, Any]) -> None:
        ours(path, tensors)
        time.sleep(SLOW)

    checkpoint._tensors = slow


def finish(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at(children: list[int], told: Path, folder: Path, step: int, in_checkpoint: bool, draw: random.Random) -> str:
    """Kill -9 of the children's whole groups once the first has done a step: at a random moment, or inside a
    checkpoint."""
    child = children[0]
    deadline = time.monotonic() + PATIENCE
    while _reached(told) < step:
        assert os.waitpid(child, os.WNOHANG) == (0, 0), f"the run ended before step {step}"
        assert time.monotonic() < deadline, f"step {step} was not reached in {PATIENCE} s"
        time.sleep(0.002)
    if in_checkpoint:
        while not list(folder.glob("*/checkpoints/.step-*.part")):
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "the run ended before a checkpoint"
        time.sleep(draw.uniform(0, 2 * SLOW))
    else:
        time.sleep(draw.uniform(0, 0.2))
    for each in children:
        os.killpg(each, signal.SIGKILL)
    assert finish(child) == -signal.SIGKILL, "the run ended before it could be killed"
    for each in children[1:]:
        finish(each)
    torn = [path.name for path in folder.glob("*/checkpoints/.step-*.part")]
    if step > 2:
        [saved] = folder.glob("*/checkpoints")
        checkpoints.newest(saved)  # raises where none is whole
    return f"killed after step {_reached(told)}" + (f", inside {torn[-1][1:-5]}'s checkpoint" if torn else "")


def _reached(told: Path) -> int:
    lines = told.read_text().split("\n")[:-1] if told.exists() else []
    return int(lines[-1].split()[0]) if lines else 0


def main() -> None:
    plan = json.load(sys.stdin)
    folder, draw = Path(plan["folder"]), random.Random(plan["seed"])
    code = finish(start([*plan["words"], f"folder={folder / 'whole'}"], folder / "whole.txt", {}))
    assert code == 0, (folder / "whole.log").read_text()
    words, told, killed = [*plan["words"], f"folder={folder / 'killed'}"], folder / "killed.txt", folder / "killed"
    for number, (workers, ranks) in enumerate(zip(plan["workers"], plan["ranks"], strict=True)):
        more = ["--resume", str(next(killed.iterdir()))] if number else []
        children = start_ranks([*words, f"trainer.num_workers={workers}", *more], told, ranks)
        if number < len(plan["kills"]):
            step, in_checkpoint = plan["kills"][number]
            said = kill_at(children, told, killed, step, in_checkpoint, draw)
            print(f"{workers} workers, {ranks} ranks: {said}", flush=True)
        else:
            codes = [finish(child) for child in children]
            assert not any(codes), (folder / "killed.log").read_text()


if __name__ == "__main__":
    main()
