"""Real ranks over gloo for the laws of losses over whole batches: children of one clean process.

    python -m tests.laws.ranks FOLDER CLIP < plan.json

The plan is a list of cases. Rank 0 of each writes ``<case>.safetensors``: every gradient as DDP leaves it, and the
losses of all pairs.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from safetensors.torch import save_file
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from mmtrain import ranks
from mmtrain.batch import Batch, Loss
from mmtrain.objective.tiles import Names, infonce, sigmoid
from mmtrain.rng import Rng
from mmtrain.train.module import TrainModule
from mmtrain.train.optim import AdamW
from tests.laws import pairs
from tests.parity.peers import open_clip_losses


def share(count: int) -> slice:
    own = count // ranks.count()
    return slice(ranks.index() * own, (ranks.index() + 1) * own)


class Step(nn.Module):
    """What the LightningModule hands to DDP: a model whose forward is the loss."""

    def __init__(self, model: nn.Module, objective: Any, pieces: int) -> None:
        super().__init__()
        self.model, self.objective, self.pieces = model, objective, pieces

    def forward(self, batch: Batch) -> Tensor:
        loss: Tensor = self.objective(self.model, batch, Rng(3, 5, batch.positions), self.pieces).per_sample
        return loss


def gradients(clip: str, case: dict[str, Any]) -> dict[str, Tensor]:
    """Gradients of one step with dropout, averaged over ranks by DDP."""
    model, adapters = pairs.towers(clip, case["objective"])
    step = DistributedDataParallel(Step(model, pairs.objective(case["objective"], tile=3), case["pieces"]))
    losses = step(pairs.pairs().part(share(8)))
    losses.mean().backward()
    return {**pairs.taken(adapters), "losses": ranks.gather(losses)}


class Apart:
    """An objective whose samples have nothing to do with each other."""

    def __call__(self, backbone: Any, batch: Batch, rng: Rng) -> Loss:
        return Loss((backbone.embed_visual(batch) - backbone.embed_text(batch.captions)).square().sum(1))


def trained(clip: str, case: dict[str, Any]) -> dict[str, Tensor]:
    """Weights after three steps through Lightning, in float64; DDP lays its buckets out anew behind the first."""
    model, adapters = pairs.towers(clip, case["objective"])
    objective = Apart() if case["objective"] == "apart" else pairs.objective(case["objective"])
    optim = AdamW(lr=1e-3, warmup=1, schedule="constant")
    module = TrainModule(
        backbone=model, adapters=adapters, objective=objective, optim=optim, seed=1, steps=3, accumulate=case["pieces"]
    )
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    quiet["enable_model_summary"] = False
    strategy = "ddp" if ranks.count() > 1 else "auto"
    trainer = pl.Trainer(max_steps=3, accelerator="cpu", devices=ranks.count(), strategy=strategy, **quiet)
    trainer.fit(module, torch.utils.data.DataLoader([pairs.pairs().part(share(8))] * 3, batch_size=None))  # type: ignore[arg-type]
    return {name: weight.detach().clone() for name, weight in module.weights.items()}


def peer(clip: str, case: dict[str, Any]) -> dict[str, Tensor]:
    """Our loss and open_clip's on the same tensors: differences of losses and of gradients averaged over ranks."""
    theirs = open_clip_losses()
    draw = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 12, 8, dtype=torch.float64, generator=draw)
    first, second = (F.normalize(side)[share(12)].requires_grad_() for side in (first, second))
    t, b = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (2.3, -10.0))
    who, world = Names.apart(len(first), first.device), {"rank": ranks.index(), "world_size": ranks.count()}
    if case["objective"] == "contrastive":
        ins, ours = [first, second, t], infonce(first, second, t, who, 4).loss.mean()
        loss = theirs.ClipLoss(local_loss=True, gather_with_grad=True, **world)(first, second, t.exp())
    else:
        ins, ours = [first, second, t, b], sigmoid(first, second, t, b, who, 4).loss.mean()
        loss = theirs.SigLipLoss(**world)(first, second, t.exp(), b)
    found, wanted = (torch.autograd.grad(value, ins) for value in (ours, loss))
    differences = {"mean loss": ours.detach() - loss.detach()}
    differences |= {f"gradient {i}": f - w for i, (f, w) in enumerate(zip(found, wanted, strict=True))}
    for name, value in differences.items():
        if not value.ndim:  # of scalars each rank has its own part
            distributed.all_reduce(value)
            differences[name] = value / ranks.count()
    return {**differences, "first": first.grad if first.grad is not None else found[0]}


KINDS: dict[str, Callable[[str, dict[str, Any]], dict[str, Tensor]]] = {
    "gradients": gradients,
    "trained": trained,
    "peer": peer,
}


def rank(index: int, world: int, folder: Path, clip: str, cases: list[dict[str, Any]]) -> None:
    for name, value in {"RANK": index, "LOCAL_RANK": index, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}.items():
        os.environ[name] = str(value)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "TORCHELASTIC_RUN_ID": "ranks", "GROUP_RANK": "0"}
    store = distributed.FileStore(str(folder / f"store-{world}"), world)
    distributed.init_process_group("gloo", store=store, rank=index, world_size=world)
    for case in cases:
        found = KINDS[case["kind"]](clip, case)
        if index == 0:
            save_file({n: t.detach().contiguous() for n, t in found.items()}, folder / f"{case['name']}.safetensors")
    distributed.destroy_process_group()


def start(index: int, world: int, folder: Path, clip: str, cases: list[dict[str, Any]]) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        rank(index, world, folder, clip, cases)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    torch.set_num_threads(1)
    folder, clip, plan = Path(sys.argv[1]), sys.argv[2], json.load(sys.stdin)
    for world in sorted({case["world"] for case in plan}):
        cases = [case for case in plan if case["world"] == world]
        children = [start(index, world, folder, clip, cases) for index in range(world)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert not any(codes), f"{world} ranks: {codes}"


if __name__ == "__main__":
    main()
