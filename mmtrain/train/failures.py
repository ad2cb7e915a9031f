"""What the machine does to a run, in words that say what to do: memory, the disk, ranks. Mends nothing."""

import errno

import torch

from mmtrain.errors import Failure, UserError

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG}
_MEMORY = ("DefaultCPUAllocator", "out of memory", "can't allocate memory")
_PEERS = ("gloo", "Connection closed by peer", "NCCL", "Socket Timeout", "Timed out waiting", "recvValue failed")


def explained(error: Exception) -> UserError | None:
    """The same as an error that a user can act on; None where nothing is known of it."""
    if isinstance(error, UserError):
        return error
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in text for word in _MEMORY):
        fix = "trainer.accumulate=2 or more, which cuts a batch into pieces and leaves its gradients as they are; on a "
        fix += "GPU trainer.precision=bf16-mixed; else a smaller dataset.size or num_frames; then --resume"
        return Failure("memory", text[:160] or "there was not enough", "a step that fits", fix)
    if isinstance(error, OSError) and error.errno in _DISK:
        fix = "make room or mend it, then go on with --resume: the last checkpoint is whole"
        return Failure(str(error.filename or "disk"), str(error.strerror), "a folder that can be written", fix)
    if isinstance(error, torch.distributed.DistError) or (isinstance(error, RuntimeError) and _is_of_peers(text)):
        fix = "look at what the others say, then go on with --resume: the last checkpoint is whole"
        return Failure("ranks", f"another process ended or does not answer ({text[:120]})", "all of them", fix)
    return None


def _is_of_peers(text: str) -> bool:
    return any(word in text for word in _PEERS)
