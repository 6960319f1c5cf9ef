"""Checkpoints that are written while training goes on, from a copy of what changes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from torch import Tensor, nn

from caramba_core.graph import ROOT
from caramba_core.run.checkpoint import Files

__all__ = ["BackgroundCheckpoints"]


class BackgroundCheckpoints:
    """Writes a run's checkpoints in a thread, one at a time, each published at once as any other.

    What comes behind one (older ones are removed, plugins hear of it) is done by the thread that trains, between two
    steps.  A write that fails is an error of the run, at the next step.  Where the block ends, nothing is being written
    any more.
    """

    def __init__(self, student: nn.Module, tell: Callable[[str], None], *, copies: bool) -> None:
        """``copies``: whether the tensors are those that training goes on with, and have to be copied."""
        self._student = student
        self._tell = tell
        self._copies = copies
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._written: Future[None] | None = None
        self._saved: Callable[[], None] | None = None

    def publish(self, saved: Callable[[], None], files: Files, write: Callable[[Files], None]) -> None:
        """Copy the tensors of a checkpoint and begin to write it; ``saved`` is what comes behind it."""
        self.finish()
        self._saved = saved
        self._written = self._thread.submit(write, self._copied(files) if self._copies else files)

    def settle(self) -> None:
        """Finish a checkpoint that is written by now."""
        if self._written is not None and self._written.done():
            self.finish()

    def finish(self) -> None:
        """Wait until nothing is being written; raises what a write failed of."""
        if self._written is None:
            return
        written, saved = self._written, self._saved
        self._written = self._saved = None
        written.result()
        assert saved is not None
        saved()

    def _copied(self, files: Files) -> Files:
        """Copies in main memory of what a step changes; weights on the CPU that do not train are as they are."""
        named = self._student.named_parameters()
        frozen = {f"{ROOT}.{name}" for name, parameter in named if not parameter.requires_grad}

        def copy(file: str, name: str, tensor: Tensor) -> Tensor:
            stays = file == "model" and name in frozen and tensor.device.type == "cpu"
            return tensor if stays else tensor.detach().to("cpu", copy=True)

        return {file: {name: copy(file, name, tensor) for name, tensor in held.items()} for file, held in files.items()}

    def __enter__(self) -> BackgroundCheckpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.finish()
        except Exception as failed:
            if error is None:
                raise
            self._tell(f"a checkpoint was not written: {failed}")  # beside what ends the run
        finally:
            self._thread.shutdown()
