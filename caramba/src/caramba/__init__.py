"""caramba from Python: load a manifest, plan, build and run it, and open what its runs made.

    experiment = caramba.load("experiment.yml", set={"vars.steps": 200})
    experiment.plan()                       # parameters, operations, cache and memory, before torch is imported
    experiment.run()                        # what `caramba run` does
    model = caramba.open("runs/NAME/GROUP/RUN")
    model.generate("The state of the union is", max_new_tokens=40)
    model.perplexity(text)
    caramba.runs()                          # every run under runs/, as a table

``python -m caramba`` is the command ``caramba``; the library underneath is :mod:`caramba_core`.  Importing this package
imports neither torch nor numpy.  Everything that a user can repair is raised as a :class:`CarambaError`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from caramba_core import __version__
from caramba_core.errors import (
    CarambaError,
    InputError,
    ManifestError,
    NumericalStop,
    PluginError,
    ResourceExhausted,
    VerificationFailed,
)

if TYPE_CHECKING:
    from caramba._experiment import Experiment
    from caramba._model import Model
    from caramba._runs import Runs

__all__ = [
    "CarambaError",
    "Experiment",
    "InputError",
    "ManifestError",
    "Model",
    "NumericalStop",
    "PluginError",
    "ResourceExhausted",
    "Runs",
    "VerificationFailed",
    "__version__",
    "load",
    "open",
    "runs",
]

_CLASSES = {"Experiment": "_experiment", "Model": "_model", "Runs": "_runs"}


def load(manifest: str | PathLike[str], *, set: Mapping[str, object] | Sequence[str] = ()) -> Experiment:
    """Read a manifest: a file, or the name of a preset that a plugin carries.

    Args:
        manifest: a ``.yml``, ``.yaml`` or ``.json`` file, or a preset's name.
        set: values laid over the manifest's, by path (``{"vars.steps": 200}``), or the same as texts, as the command
            line takes them (``["vars.steps=200"]``).

    Returns:
        The experiment, checked, but for what its runs need: nothing is computed, and torch is not imported.  A teacher
        that the model is taken from (``model: {from: teacher}``) is fetched.

    Raises:
        ManifestError: everything that is wrong with the manifest, each problem with its file, line and column.
    """
    from caramba._experiment import load_experiment

    return load_experiment(manifest, set)


def open(
    path: str | PathLike[str], *, device: str = "auto", dtype: str | None = None, step: int | None = None
) -> Model:
    """Open the model of a run, or a pretrained checkpoint.

    Args:
        path: a run's folder (``runs/NAME/GROUP/RUN``), a checkpoint's file or folder, or an address (``hf://org/repo``).
        device: ``auto`` (CUDA, then MPS, then the CPU), ``cpu``, ``cuda`` or ``mps``.
        dtype: the type that a run's model computes in, its own if not given; the type that a checkpoint's weights are
            held in, float32 if not given.
        step: the training step whose checkpoint is opened; the last one of a finished run if not given.

    Returns:
        The model in evaluation mode, with its tokenizer where the run's teacher (or the checkpoint) carries one.

    Raises:
        InputError: for a folder that is neither a run's nor a checkpoint, a run without a checkpoint, and, unless
            ``step`` is given, a run that has not finished.
    """
    from caramba._model import open_model

    return open_model(path, device=device, dtype=dtype, step=step)


def runs(path: str | PathLike[str] = "runs") -> Runs:
    """List the runs under a folder: status, step, perplexity, cached bytes per token.

    Args:
        path: a folder that holds runs, up to four levels above them; or a run's own.

    Returns:
        The runs in the order of their folders' names.  Prints as a table; ``.to_dicts()`` gives plain data.

    Raises:
        InputError: where there is no such folder.
    """
    from caramba._runs import list_runs

    return list_runs(path)


def __getattr__(name: str) -> Any:
    if name in _CLASSES:
        from importlib import import_module

        return getattr(import_module(f"caramba.{_CLASSES[name]}"), name)
    raise AttributeError(f"module 'caramba' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
