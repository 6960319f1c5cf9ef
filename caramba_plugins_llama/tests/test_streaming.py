"""Loading holds the model and little else, whatever the type and size of the file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from caramba_plugins_llama.hf_folder import HuggingFaceFolder
from caramba_plugins_standard.loading import find_loader
from caramba_plugins_standard.loading.filling import load_weights
from caramba_plugins_testing.loaders import check_loader
from safetensors.torch import load_file

from caramba_core.errors import InputError
from caramba_core.nn.build import build

from .conftest import graph_of, read_model, write_oracle
from .damage import edit_weights, refused

MB = 1_000_000

SCRIPT = """
import json, sys
from pathlib import Path
import torch
import caramba_plugins_llama.mapped_file, caramba_plugins_standard.gqa_module
from caramba_plugins_standard.loading import find_loader
from caramba_core.lowering import lower
from caramba_core.manifest.structure import structure_model
from caramba_core.nn.build import build
from caramba_plugins_standard.loading.filling import load_weights

def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))

torch.set_num_threads(1)
checkpoint = find_loader(Path(sys.argv[1]))
graph = lower(structure_model(checkpoint.model(), origin="test"))
before = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
model = build(graph, dtype=getattr(torch, sys.argv[2]))
load_weights(model, checkpoint)
sizes = [p.numel() * p.element_size() for p in model.parameters()]
print(json.dumps([resident("VmHWM") - before, sum(sizes)]))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is measured through /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peak_memory(tmp_path: Path, dtype: str) -> None:
    """In the file's type even the largest tensor is never there as a whole."""
    write_oracle(
        tmp_path, "llama", vocab_size=24000, hidden_size=660, intermediate_size=2000, num_hidden_layers=6, shards=False
    )
    file = (tmp_path / "model.safetensors").stat().st_size
    assert file > 150 * MB, "smaller than what a loader that holds everything twice would be caught at"
    largest = 24000 * 660 * 4
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), dtype], capture_output=True, text=True, check=True
    )
    peak, model = json.loads(done.stdout)
    assert peak < (largest / 3 if dtype == "float32" else model + largest + 40 * MB)


def test_the_kit_agrees_with_spans(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "kit").mkdir()
    checkpoint = find_loader(folder)
    assert all(stored.span is not None for stored in checkpoint.layout())
    check_loader(HuggingFaceFolder, folder / "model.safetensors", tmp_path / "kit")


@pytest.mark.parametrize(
    ("model_type", "rearranged"),
    [("phi3", ("qkv_proj.weight[0:48]", "qkv_proj.weight[48:64]")), ("glm4", ("q_proj", "k_proj"))],
)
@pytest.mark.parametrize("pickled", [False, True])
def test_projections_that_are_stored_as_one(
    tmp_path: Path, model_type: str, rearranged: tuple[str, ...], pickled: bool
) -> None:
    """Each has its rows as a span of its own, unless they stand in another order."""
    factor = {"partial_rotary_factor": 0.5, "rope_theta": 100.0, "rope_type": "default"}
    write_oracle(tmp_path / "hf", model_type, rope_parameters=factor)
    path = tmp_path / "hf" / "model.safetensors"
    if pickled:
        torch.save(load_file(path), tmp_path / "hf" / "pytorch_model.bin")
        expected = read_model(path).state_dict()
        found = read_model(tmp_path / "hf" / "pytorch_model.bin").state_dict()
        assert all(torch.equal(expected[name], tensor) for name, tensor in found.items())
        return
    layout = find_loader(path).layout()
    for stored in layout:
        assert (stored.span is None) == any(part in stored.key for part in rearranged), stored.key
    assert len({stored.key for stored in layout}) == len(layout) > len(load_file(path))
    (tmp_path / "kit").mkdir()
    check_loader(HuggingFaceFolder, path, tmp_path / "kit")


def test_rows_that_are_missing(tmp_path: Path) -> None:
    """What is short is told by the parameters that it would fill."""
    write_oracle(tmp_path, "phi3")
    edit_weights(tmp_path, lambda tensors: cut(tensors, "model.layers.1.mlp.gate_up_proj.weight"))
    refused(tmp_path, r"gate_up_proj.weight\[80:157\].* has shape \[77, 48\]")


def cut(tensors: dict[str, torch.Tensor], key: str) -> None:
    tensors[key] = tensors[key][:-3].contiguous()


def test_the_file_is_not_changed_by_its_model(folder: Path) -> None:
    """Same type and device: the parameters are the file's own pages, privately."""
    before = (folder / "model.safetensors").read_bytes()
    model = read_model(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert (folder / "model.safetensors").read_bytes() == before
    assert all(parameter.abs().sum() > 0 for parameter in model.parameters())


def test_a_file_replaced_by_another_leaves_the_model_as_it_was(folder: Path, tmp_path: Path) -> None:
    model = read_model(folder)
    expected = {name: tensor.clone() for name, tensor in read_model(folder).state_dict().items()}
    (tmp_path / "new").write_bytes(b"something else")
    (tmp_path / "new").replace(folder / "model.safetensors")
    assert all(torch.equal(expected[name], tensor) for name, tensor in model.state_dict().items())


def test_unaligned_tensors(folder: Path) -> None:
    """A header may have any length, so data may start anywhere."""
    expected = read_model(folder, torch.float64).float().state_dict()  # memory of its own: the file is written to
    misalign(folder)
    found = read_model(folder).state_dict()
    assert all(torch.equal(expected[name], tensor) for name, tensor in found.items())


def test_unaligned_tensors_are_looked_at(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors["lm_head.weight"][-1, -2:].fill_(float("nan")))
    misalign(folder)
    refused(folder, r"lm_head.weight holds 2 NaN of 4656 values \(fills model.head.weight\)")


def misalign(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    (folder / "model.safetensors").write_bytes(
        (length + 1).to_bytes(8, "little") + content[8 : 8 + length] + b" " + content[8 + length :]
    )


def test_a_file_cut_off_after_its_header_was_read(folder: Path) -> None:
    checkpoint = find_loader(folder)
    model = build(graph_of(checkpoint))
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(file.seek(0, 2) - 1)
    with pytest.raises(InputError, match=r"model.safetensors ends inside model.norm.weight"):
        load_weights(model, checkpoint)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types(folder: Path, dtype: torch.dtype) -> None:
    expected = read_model(folder).state_dict()
    for name, tensor in read_model(folder, dtype).state_dict().items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, expected[name].to(dtype))
