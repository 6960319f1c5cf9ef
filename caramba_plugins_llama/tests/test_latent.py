"""DeepSeek's latent attention in folders and GGUF files: read, written, run by llama.cpp, or refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from caramba_plugins_llama.export import export
from caramba_plugins_llama.gguf_header import read_file
from caramba_plugins_standard.loading import find_loader

from caramba_core.errors import InputError
from caramba_core.nn.language_model import LanguageModel

from .conftest import LATENT, all_in_64_bits, random_tokens, read_model, write_oracle
from .llama_cpp import logits_of

pytest.importorskip("caramba_plugins_mla")

SETTINGS = LATENT["deepseek_v3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense DeepSeek-V3 of transformers, by its own hand; residual streams far above what norms add."""
    path = tmp_path_factory.mktemp("latent") / "hf"
    write_oracle(path, "deepseek_v3", initializer_range=0.5, **SETTINGS)
    return path


def logits(folder: Path, tokens: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    import transformers

    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    with torch.no_grad():
        found: torch.Tensor = model.eval()(tokens).logits
    return found


def test_logits_are_those_of_transformers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = random_tokens(30)
    torch.testing.assert_close(read_model(folder)(tokens), logits(folder, tokens, torch.float32), rtol=0, atol=1e-4)
    with all_in_64_bits("deepseek_v3", monkeypatch):
        wide = logits(folder, tokens, torch.float64)
    torch.testing.assert_close(read_model(folder, torch.float64)(tokens), wide, rtol=0, atol=1e-6)


@pytest.mark.parametrize("layers", [3, 26])
def test_a_gguf_file_of_it(folder: Path, tmp_path: Path, layers: int) -> None:
    """Queries have a latent there, the identity, but in models that llama.cpp takes for a smaller DeepSeek."""
    if layers != 3:
        folder = tmp_path / "deep"
        sizes = {**SETTINGS, "num_hidden_layers": layers, "first_k_dense_replace": layers}
        write_oracle(folder, "deepseek_v3", initializer_range=0.3, **sizes)
    mine, tokens = read_model(folder), random_tokens(30, batch=1)
    done = export(folder, tmp_path / "out.gguf", form="gguf")
    torch.testing.assert_close(read_model(done.path)(tokens), mine(tokens), rtol=0, atol=1e-4)
    header = read_file(done.path)
    assert header.metadata["general.architecture"] == "deepseek2"
    assert ("blk.0.attn_q_a.weight" in header.tensors) is (layers == 3)
    expected = logits_of(done.path, tokens[0].tolist())
    assert not isinstance(expected, str), f"llama.cpp does not read it: {expected}"
    torch.testing.assert_close(mine(tokens)[0], torch.tensor(expected), rtol=0, atol=1e-3)


def same(one: LanguageModel, other: LanguageModel, tolerance: float) -> None:
    tokens = random_tokens(30)
    torch.testing.assert_close(one(tokens), other(tokens), rtol=0, atol=tolerance)


def test_the_way_through_both_formats(folder: Path, tmp_path: Path) -> None:
    """A folder, a GGUF file of it, a folder of that."""
    export(folder, tmp_path / "one.gguf", form="gguf")
    export(tmp_path / "one.gguf", tmp_path / "folder", form="deepseek_v3")
    same(read_model(folder), read_model(tmp_path / "folder"), 1e-4)
    import transformers

    assert type(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "folder")).__name__.startswith("Deepseek")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "experts": ({"first_k_dense_replace": 1}, "first_k_dense_replace is 1: the MLPs of 2 layers are experts"),
    "by default": ({"first_k_dense_replace": None, "q_lora_rank": 5}, "q_lora_rank is 5: its queries come from"),
    "widths": ({"v_head_dim": 6}, "v_head_dim is 6: it is read at 8"),
    "pairs": ({"rope_interleave": False}, "rope_interleave is False: its rotary pairs would lie half"),
    "yarn": ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn' is not one of default, longrope"),
    "offsets": ({"attention_bias": True}, "attention_bias is True"),
    "another key": ({"index_topk": 64}, "index_topk is 64: this key is not known"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_deepseeks_are_refused_by_what_is_missing(folder: Path, tmp_path: Path, name: str) -> None:
    changes, reason = REFUSED[name]
    shutil.copytree(folder, tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(InputError, match=reason):
        read_model(tmp_path / "hf")


def test_a_tensor_of_other_rows_is_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**config, "kv_lora_rank": 12}))
    with pytest.raises(InputError, match=r"kv_a_proj_with_mqa\.weight"):
        read_model(tmp_path / "hf")


def test_latents_of_queries_other_than_the_input_are_refused(folder: Path, tmp_path: Path) -> None:
    done = export(folder, tmp_path / "out.gguf", form="gguf")
    tensor = read_file(done.path).tensors["blk.1.attn_q_a.weight"]
    data = bytearray(done.path.read_bytes())
    data[tensor.offset + 4 : tensor.offset + 8] = b"\x00\x00\x80\x3f"
    done.path.write_bytes(data)
    with pytest.raises(InputError, match=r"blk\.1\.attn_q_a\.weight makes a latent of the queries"):
        list(find_loader(done.path).tensors())
