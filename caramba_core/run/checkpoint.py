"""Checkpoints: everything a run needs to go on as if it had never stopped.

model.safetensors       every parameter and stored buffer, under the graph's names
optimizer.safetensors   the optimizer's tensors, as <parameter>/<state>
random.safetensors      generator states
state.json              step, data position, optimizer scalars, identities; SHA-256 of the other files and of itself

Every file is compared with its hash before it is used, and the step with the folder's name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from caramba_core.errors import InputError
from caramba_core.graph import ROOT
from caramba_core.nn.language_model import LanguageModel
from caramba_core.places import regular
from caramba_core.run.atomic import publish_folder
from caramba_core.run.directory import hash_of, step_of

__all__ = [
    "Files",
    "load_random",
    "load_tensors",
    "model_tensors",
    "read_state",
    "restore_optimizer",
    "save_checkpoint",
    "save_tensors",
]

Files: TypeAlias = Mapping[str, Mapping[str, Tensor]]
Publish: TypeAlias = Callable[[Files, Callable[[Files], None]], None]


def model_tensors(model: LanguageModel) -> dict[str, Tensor]:
    """Every parameter and stored buffer of a model under its graph name."""
    return {f"{ROOT}.{name}": tensor.detach() for name, tensor in model.state_dict().items()}


def save_checkpoint(
    path: Path,
    *,
    model: LanguageModel,
    optimizer: torch.optim.Optimizer | None,
    state: dict[str, Any],
    tensors: Files | None = None,
    publish: Publish | None = None,
) -> None:
    """Publish a checkpoint folder, which is named after its step, at once, in place of one that is there.

    ``tensors`` are further files of it: ``<name>.safetensors`` holds those under each name; a ``model`` among them
    stands for the model's.  ``publish`` gets the tensors of all files, and what writes them or copies, now or later.
    """
    files = {**tensors} if tensors and "model" in tensors else {"model": model_tensors(model), **(tensors or {})}
    if optimizer is not None:
        files["optimizer"], scalars = _optimizer_state(model, optimizer)
        state = {**state, "optimizer": scalars}
    files["random"] = {name: device.get_rng_state() for name, device in _generators().items()}

    def write(files: Files) -> None:
        with publish_folder(path, replace=True) as folder:
            for name, held in files.items():
                save_tensors({key: t.contiguous() for key, t in held.items()}, folder / f"{name}.safetensors")
            hashes = {file.name: _hash(file) for file in sorted(folder.iterdir())}
            known = {"step": step_of(path), **state, "files": hashes}
            known["sha256"] = hash_of(known)
            (folder / "state.json").write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")

    write(files) if publish is None else publish(files, write)


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file with the user's usual permissions, which the library restricts.

    What the system refuses is raised as :class:`OSError`, which the library hides.
    """
    try:
        path.touch()
        permissions = path.stat().st_mode
        save_file(tensors, path, metadata=metadata)
        path.chmod(permissions)
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def load_tensors(path: Path, name: str = "model") -> dict[str, Tensor]:
    """The model's tensors of a checkpoint folder, or those of another name, on the CPU, as they were written."""
    file, files = path / f"{name}.safetensors", read_state(path)["files"]
    try:
        same = files.get(file.name) == _hash(file)
        tensors: dict[str, Tensor] = load_file(file) if same else {}
    except (OSError, SafetensorError, InputError) as error:
        raise _damaged(path, f"{file.name} cannot be read: {getattr(error, 'message', error)}") from error
    if not same:
        raise _damaged(path, f"{file.name} is not as it was written")
    return tensors


def read_state(path: Path) -> dict[str, Any]:
    """The scalars of a checkpoint folder, once they are known to be what was written, and there."""
    try:
        state: dict[str, Any] = json.loads(regular(path / "state.json").read_text(encoding="utf-8"))
        intact = isinstance(state, dict) and state.pop("sha256", None) == hash_of(state)
    except (OSError, ValueError, RecursionError, InputError) as error:
        raise _damaged(path, f"state.json cannot be read: {getattr(error, 'message', error)}") from error
    if not intact:
        raise _damaged(path, "state.json is not as it was written")
    if path.name != f"step_{state['step']:06d}":
        raise _damaged(path, f"it was made at step {state['step']}, and copied or renamed")
    return state


def _hash(file: Path) -> str:
    with regular(file).open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _damaged(path: Path, problem: str) -> InputError:
    """The error about a checkpoint that is not used, with the way on."""
    steps = [step for other in path.parent.glob("step_*") if (step := step_of(other)) is not None and other != path]
    steps = [step for step in steps if step < (step_of(path) or 0)]
    hint = "start anew with --again"
    if steps:
        hint = f"go on from the checkpoint before it with --resume --resume-from {max(steps)}, or {hint}"
    return InputError(f"the checkpoint {path} is damaged: {problem}", hint=hint)


def restore_optimizer(path: Path, model: LanguageModel, optimizer: torch.optim.Optimizer) -> None:
    """Put the optimizer's state of a checkpoint back."""
    saved: dict[str, dict[str, Any]] = read_state(path)["optimizer"]
    for key, tensor in load_tensors(path, "optimizer").items():
        name, _, entry = key.rpartition("/")
        saved.setdefault(name, {})[entry] = tensor
    names = _parameter_names(model)
    for group in optimizer.param_groups:
        # torch keeps its step counter on the CPU, unless kernels read it
        counts_on_device = bool(group.get("fused") or group.get("capturable"))
        for parameter in group["params"]:
            for entry, value in saved.get(names[id(parameter)], {}).items():
                moves = isinstance(value, Tensor) and (entry != "step" or counts_on_device)
                optimizer.state[parameter][entry] = value.to(parameter.device) if moves else value


def _optimizer_state(
    model: LanguageModel, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    names = _parameter_names(model)
    for parameter, state in optimizer.state.items():
        name = names[id(parameter)]
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{name}/{key}"] = value.detach()
            elif value is not None:
                scalars.setdefault(name, {})[key] = value
    return tensors, scalars


def _parameter_names(model: LanguageModel) -> dict[int, str]:
    return {id(parameter): f"{ROOT}.{name}" for name, parameter in model.named_parameters()}


def load_random(path: Path) -> None:
    """Put the states of the random generators of a checkpoint back, those of devices that are here."""
    states = load_tensors(path, "random")
    for name, device in _generators().items():
        if name in states:
            device.set_rng_state(states[name])


def _generators() -> dict[str, Any]:
    """What gets and sets the state of each device's random generator."""
    devices = {"cpu": torch, "cuda": torch.cuda, "mps": torch.mps}
    return {name: device for name, device in devices.items() if name == "cpu" or device.is_available()}
