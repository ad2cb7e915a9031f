"""How the ranks of a run share its work, as `trainer.strategy` says: by Lightning's strategies."""

from typing import Any

from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy

from mmtrain.train.launch import Ranks
from mmtrain.train.schedule import Fit


def arguments(schedule: Fit, ranks: Ranks) -> dict[str, Any]:
    """What Lightning's Trainer is told of processes and devices.

    One process is one device and no strategy. Buffers are not sent around before each step: no objective writes them.
    """
    where: dict[str, Any] = {
        "accelerator": schedule.accelerator,
        "devices": schedule.devices,
        "num_nodes": schedule.num_nodes,
    }
    if ranks.count == 1:
        return where
    where["plugins"] = [TorchElasticEnvironment()]  # our processes are there already, with torchrun's variables
    if schedule.strategy == "fsdp":
        return where | {"strategy": ModelParallelStrategy(data_parallel_size=ranks.count, tensor_parallel_size=1)}
    return where | {"strategy": DDPStrategy(broadcast_buffers=False)}
