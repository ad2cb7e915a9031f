"""A proof's other side without a process of its own, which costs ten seconds of imports for each."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from mmtrain.export import prove, vanilla


@contextmanager
def here() -> Iterator[None]:
    """The same script, run in this process. That it runs in a clean one is proved once for each kind of export:
    pipelines (`test_export`), LoRA (`test_layouts`), models of transformers and PEFT adapters (`test_align_export`)."""

    def run(place: Path) -> CompletedProcess[str]:
        try:
            vanilla.main(place)
        except SystemExit as stopped:
            return CompletedProcess("vanilla", 1, "", str(stopped))
        return CompletedProcess("vanilla", 0, "", "")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prove, "_run", run)
        yield
