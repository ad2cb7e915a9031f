"""Runs an exported network as anyone would, with ONNX Runtime and numpy, and nothing of mmtrain or torch.

A script of its own: `onnx.py` starts it in a clean process, as ``python -P runtime.py FILE FOLDER THREADS``. The folder
holds ``input.npz``, an array for each input; it gets ``output.npy``.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime


def main(file: Path, folder: Path, threads: int) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    with np.load(folder / "input.npz", allow_pickle=False) as given:
        inputs = dict(given)
    wanted = {each.name for each in session.get_inputs()}
    if wanted != set(inputs):
        sys.exit(f"its inputs are {sorted(wanted)}, and a step gives {sorted(inputs)}")
    np.save(folder / "output.npy", session.run(None, inputs)[0])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    alien = {name.split(".")[0] for name in sys.modules} & {"mmtrain", "torch"}
    assert not alien, f"the proof must need no {alien}"
