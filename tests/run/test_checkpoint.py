"""Checkpoints hold all that resuming needs; what is damaged is said."""

from pathlib import Path

import pytest
import torch

from caramba_core.errors import InputError
from caramba_core.run.checkpoint import (
    load_random,
    load_tensors,
    model_tensors,
    read_state,
    restore_optimizer,
    save_checkpoint,
)
from caramba_core.run.student import assemble

from .models import tiny_model


def stepped(model: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    tokens = torch.randint(0, 40, (2, 9), generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model(tokens).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("make", [torch.optim.AdamW, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)])
def test_a_restored_optimizer_goes_on_bit_for_bit(tmp_path: Path, make: type[torch.optim.Optimizer]) -> None:
    model = tiny_model(seed=0)
    optimizer = make(model.parameters())
    stepped(model, optimizer, 0)
    save_checkpoint(tmp_path / "step_000001", model=model, optimizer=optimizer, state={"step": 1})
    torch.manual_seed(7)
    stepped(model, optimizer, 1)

    again = tiny_model(seed=5)
    again.load_state_dict({k.removeprefix("model."): v for k, v in load_tensors(tmp_path / "step_000001").items()})
    other = make(again.parameters())
    restore_optimizer(tmp_path / "step_000001", again, other)
    stepped(again, other, 1)
    for (name, expected), (_, found) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(expected, found), name


@pytest.mark.parametrize("fused", [True, False])
def test_the_step_counter_lies_where_torch_reads_it(tmp_path: Path, fused: bool) -> None:
    """A fused step on an accelerator reads it there, a plain one on the CPU; ``meta`` stands for an accelerator."""
    model = tiny_model(seed=0)
    optimizer = torch.optim.AdamW(model.parameters())
    stepped(model, optimizer, 0)
    save_checkpoint(tmp_path / "step_000001", model=model, optimizer=optimizer, state={"step": 1})
    elsewhere = tiny_model(seed=0).to("meta")
    other = torch.optim.AdamW(elsewhere.parameters())
    other.param_groups[0]["fused"] = fused
    restore_optimizer(tmp_path / "step_000001", elsewhere, other)
    for state in other.state.values():
        assert state["step"].device.type == ("meta" if fused else "cpu")
        assert state["exp_avg"].device.type == "meta"


def test_a_checkpoint_of_another_model_is_refused() -> None:
    tensors = model_tensors(tiny_model(seed=0))
    del tensors["model.blocks.0.attention.q_proj"], tensors["model.blocks.1.attention.q_proj"]
    with pytest.raises(
        InputError, match=r"the run's checkpoint does not fit the model \(2 of its tensors\)(.|\n)*\{0-1\}"
    ):
        assemble(
            tiny_model(seed=0).graph,
            teacher=None,
            tensors=tensors,
            trained=frozenset(),
            device=torch.device("cpu"),
            dtype=torch.float32,
            seed=0,
        )


def test_random_numbers_go_on(tmp_path: Path) -> None:
    torch.manual_seed(3)
    torch.rand(5)
    save_checkpoint(tmp_path / "step_000001", model=tiny_model(seed=0), optimizer=None, state={"step": 1})
    expected = torch.rand(4)
    torch.manual_seed(99)
    load_random(tmp_path / "step_000001")
    assert torch.equal(torch.rand(4), expected)


def test_random_numbers_of_apple_gpus_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = [torch.tensor([7], dtype=torch.uint8)]
    monkeypatch.setattr("torch.mps.is_available", lambda: True)
    monkeypatch.setattr("torch.mps.get_rng_state", lambda: states[-1])
    monkeypatch.setattr("torch.mps.set_rng_state", states.append)
    save_checkpoint(tmp_path / "step_000001", model=tiny_model(seed=0), optimizer=None, state={"step": 1})
    states[0] = torch.tensor([9], dtype=torch.uint8)
    load_random(tmp_path / "step_000001")
    assert states[1].tolist() == [7]


def test_tied_embeddings_are_stored_once(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "step_000001", model=tiny_model(seed=0), optimizer=None, state={"step": 1})
    names = set(load_tensors(tmp_path / "step_000001"))
    assert "model.embedder.weight" in names
    assert "model.head.weight" not in names
    assert "model.blocks.1.attention.q_proj" in names


@pytest.mark.parametrize("file", ["model.safetensors", "state.json"])
def test_a_damaged_file_is_named(tmp_path: Path, file: str) -> None:
    folder = tmp_path / "step_000001"
    save_checkpoint(folder, model=tiny_model(seed=0), optimizer=None, state={"step": 1})
    (folder / file).write_bytes((folder / file).read_bytes()[:7])
    with pytest.raises(InputError, match=file):
        load_tensors(folder)
        read_state(folder)
