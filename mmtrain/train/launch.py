"""Several processes for one run: started here on one machine, or met as torchrun and Slurm start them.

Every rank calls `fit`. The first makes the run's folder and the cache; the others wait for it, however long it takes.
From then on they watch each other: one that ends or hangs stops all within ``trainer.rank_timeout`` seconds.
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from torch import cuda, distributed
from torch.distributed.distributed_c10d import PrefixStore

from mmtrain.errors import Failure, Stopped, UserError
from mmtrain.train.schedule import Fit

GRACE_SECONDS = 10.0  # in which the others may end by themselves once one rank has ended badly
_PREPARING = timedelta(days=2)
_PR_SET_PDEATHSIG = 1  # prctl(2): a rank does not outlive the process that started it


Made = TypeVar("Made")


@dataclass
class Ranks:
    """One process among those of a run."""

    index: int = 0
    count: int = 1
    store: Any = None

    @property
    def is_first(self) -> bool:
        return self.index == 0

    def shared(self, name: str, make: Callable[[], Made]) -> Made:
        """What the first rank makes, as JSON holds it; the others wait for it."""
        if self.count == 1:
            return make()
        if not self.is_first:
            return json.loads(self.store.get(name))
        made = make()
        self.store.set(name, json.dumps(made))
        return made

    def in_turn(self, make: Callable[[], Made]) -> Made:
        """What every rank makes for itself, the first one before the others: it writes what they then find."""
        if self.is_first:
            made = make()
            self.shared("turn", lambda: True)
            return made
        self.shared("turn", lambda: True)
        return make()


def is_to_be_started(schedule: Fit) -> bool:
    """Whether a run of several processes has none of them yet."""
    return schedule.devices * schedule.num_nodes > 1 and _place() is None


def _place() -> tuple[int, int, int] | None:
    """Rank, local rank and their number, as torchrun or Slurm have told them to this process."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return int(env["RANK"]), int(env["LOCAL_RANK"]), int(env["WORLD_SIZE"])
    if int(env.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in env and env.get("SLURM_JOB_NAME") != "bash":
        return int(env["SLURM_PROCID"]), int(env["SLURM_LOCALID"]), int(env["SLURM_NTASKS"])
    return None


@contextmanager
def joined(schedule: Fit) -> Iterator[Ranks]:
    """This process among the others of the run; alone where the run has one.

    Raises:
        UserError: as many were started as the config does not say.
    """
    count, place = schedule.devices * schedule.num_nodes, _place()
    if count == 1:
        yield Ranks()
        return
    assert place is not None, "is_to_be_started comes first"
    index, local, world = place
    if world != count:
        came = f"{world} processes were started"
        wanted = f"trainer.devices × trainer.num_nodes = {schedule.devices} × {schedule.num_nodes}"
        raise UserError("launch", came, wanted, "start as many, or correct the two")
    _tell_lightning(index, local, world)
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = _meeting(address, port, index, world)
    if cuda.is_available():
        cuda.set_device(local)
    backend = "cpu:gloo,cuda:nccl" if cuda.is_available() else "gloo"
    patience = timedelta(seconds=schedule.rank_timeout)
    meeting = PrefixStore("ranks", store)
    try:
        distributed.init_process_group(backend, store=meeting, rank=index, world_size=world, timeout=patience)
        yield Ranks(index, world, PrefixStore("run", store))
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _meeting(address: str, port: int, index: int, world: int) -> Any:
    """The store of all ranks; under torchrun its agent holds one at this address already."""
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return distributed.TCPStore(  # type: ignore[attr-defined]
        address, port, world, is_master=index == 0 and not agent, timeout=_PREPARING, wait_for_workers=False
    )


def _tell_lightning(index: int, local: int, world: int) -> None:
    """What torchrun would have set, where Slurm started us."""
    env = os.environ
    env.update(RANK=str(index), LOCAL_RANK=str(local), WORLD_SIZE=str(world))
    if "MASTER_ADDR" not in env:
        from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

        env["MASTER_ADDR"] = SLURMEnvironment.resolve_root_node_address(env.get("SLURM_JOB_NODELIST", "127.0.0.1"))
    env.setdefault("MASTER_PORT", str(20000 + int(env.get("SLURM_JOB_ID", "0")) % 20000))


# starting them --------------------------------------------------------------------------------------------------------


def start(config: dict[str, Any], ask: dict[str, Any], schedule: Fit) -> Path:
    """Run `fit` in a process for each device of this machine, and return the run's folder.

    Signals are handed on to all of them. Once one has ended badly, the others are given `GRACE_SECONDS`.

    Raises:
        UserError, Stopped: what the first rank that ended badly raised; more machines than this one.
    """
    if schedule.num_nodes > 1:
        fix = "start it there with torchrun or srun, see docs/launching.md"
        raise UserError("trainer.num_nodes", str(schedule.num_nodes), "a process on each machine already", fix)
    count = schedule.devices
    with tempfile.TemporaryDirectory(prefix="mmtrain-") as folder:
        plan = Path(folder) / "plan.json"
        plan.write_text(json.dumps({"config": config, "ask": ask, "command": sys.argv}))
        port = str(_free_port())
        processes = [_process(plan, index, count, port) for index in range(count)]
        with _handing_on(processes):
            ended = _wait(processes)
        outcomes = [_outcome(plan, index) for index in range(count)]
    bad = [ended, *(i for i in range(count) if i != ended)] if ended is not None else range(count)
    for index in bad:
        outcome = outcomes[index]
        if outcome is not None and "run" not in outcome:
            raise _raised(outcome)
    if ended is not None:
        status = processes[ended].returncode
        fix = "look at memory and at what it wrote above, then go on with --resume"
        raise Failure(f"rank {ended}", f"ended with status {status}", "its part of the run", fix)
    assert outcomes[0] is not None
    return Path(outcomes[0]["run"])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _process(plan: Path, index: int, count: int, port: str) -> subprocess.Popen[bytes]:
    env = {**os.environ, "RANK": str(index), "LOCAL_RANK": str(index), "WORLD_SIZE": str(count)}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    words = [sys.executable, "-m", "mmtrain.train.rank", str(plan)]
    return subprocess.Popen(words, env=env, start_new_session=True)  # Ctrl-C reaches us alone, and is handed on


@contextmanager
def _handing_on(processes: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    def hand_on(number: int, frame: FrameType | None) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    former = [signal.signal(number, hand_on) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, former, strict=True):
            signal.signal(number, handler)
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()


def _wait(processes: list[subprocess.Popen[bytes]]) -> int | None:
    """The first rank that ended badly, once all have ended or the others' time is over; None if all ended well."""
    bad, deadline = None, float("inf")
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        time.sleep(0.05)
        if bad is None:
            bad = next((i for i, process in enumerate(processes) if process.poll()), None)
            deadline = time.monotonic() + GRACE_SECONDS if bad is not None else deadline
    return bad if bad is not None else next((i for i, p in enumerate(processes) if p.returncode), None)


def _outcome(plan: Path, index: int) -> dict[str, Any] | None:
    file = plan.with_name(f"{index}.json")
    return json.loads(file.read_text()) if file.is_file() else None


def _raised(outcome: dict[str, Any]) -> Exception:
    if "status" in outcome:
        return Stopped(outcome["text"], outcome["status"])
    kind = Failure if outcome["failure"] else UserError
    return kind(*outcome["error"])


# in a rank ------------------------------------------------------------------------------------------------------------


def follow_parent() -> None:
    """Ask the system to end this process with the one that started it, where it can."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def tell(plan: Path, outcome: dict[str, Any]) -> None:
    """Write how this rank ended, for the process that started it."""
    plan.with_name(f"{os.environ['RANK']}.json").write_text(json.dumps(outcome))
