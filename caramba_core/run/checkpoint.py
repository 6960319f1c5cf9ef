"""Checkpoints: everything a run needs to go on as if it had never stopped.

model.safetensors       every parameter and stored buffer, under the graph's names
optimizer.safetensors   the optimizer's tensors, as <parameter>/<state>
state.json              step, data position, optimizer scalars, identities (written last inside the folder)
random.safetensors      generator states
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from caramba_core.errors import InputError
from caramba_core.graph import ROOT
from caramba_core.nn.language_model import LanguageModel
from caramba_core.run.atomic import publish_folder

__all__ = ["load_random", "load_tensors", "model_tensors", "read_state", "restore_optimizer", "save_checkpoint"]


def model_tensors(model: LanguageModel) -> dict[str, Tensor]:
    """Every parameter and stored buffer of a model under its graph name."""
    return {f"{ROOT}.{name}": tensor.detach() for name, tensor in model.state_dict().items()}


def save_checkpoint(
    path: Path,
    *,
    model: LanguageModel,
    optimizer: torch.optim.Optimizer | None,
    state: dict[str, Any],
) -> None:
    """Publish a checkpoint folder at once, in place of one that is there."""
    with publish_folder(path, replace=True) as folder:
        save_file({name: t.contiguous() for name, t in model_tensors(model).items()}, folder / "model.safetensors")
        if optimizer is not None:
            tensors, scalars = _optimizer_state(model, optimizer)
            save_file(tensors, folder / "optimizer.safetensors")
            state = {**state, "optimizer": scalars}
        save_file(_random_state(), folder / "random.safetensors")
        (folder / "state.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The model's tensors of a checkpoint folder, on the CPU."""
    return _read(path / "model.safetensors")


def read_state(path: Path) -> dict[str, Any]:
    """The scalars of a checkpoint folder."""
    file = path / "state.json"
    try:
        state: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{file} cannot be read: {error}", hint="remove this checkpoint to go on from an older one"
        ) from error
    return state


def restore_optimizer(path: Path, model: LanguageModel, optimizer: torch.optim.Optimizer) -> None:
    """Put the optimizer's state of a checkpoint back."""
    tensors = _read(path / "optimizer.safetensors")
    scalars = read_state(path)["optimizer"]
    names = _parameter_names(model)
    for group in optimizer.param_groups:
        # torch keeps its step counter on the CPU, unless kernels read it
        counts_on_device = bool(group.get("fused") or group.get("capturable"))
        for parameter in group["params"]:
            name = names[id(parameter)]
            state = dict(scalars.get(name, {}))
            for key, tensor in tensors.items():
                owner, _, entry = key.rpartition("/")
                if owner == name:
                    moves = entry != "step" or counts_on_device
                    state[entry] = tensor.to(parameter.device) if moves else tensor
            if state:
                optimizer.state[parameter] = state


def load_random(path: Path) -> None:
    """Put the generators' states of a checkpoint back."""
    states = _read(path / "random.safetensors")
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    if "mps" in states and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])


def _random_state() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def _parameter_names(model: LanguageModel) -> dict[int, str]:
    return {id(parameter): f"{ROOT}.{name}" for name, parameter in model.named_parameters()}


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
                tensors[f"{name}/{key}"] = value.detach().contiguous()
            elif value is not None:
                scalars.setdefault(name, {})[key] = value
    return tensors, scalars


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{file} cannot be read: {error}", hint="remove this checkpoint to go on from an older one"
        ) from error
