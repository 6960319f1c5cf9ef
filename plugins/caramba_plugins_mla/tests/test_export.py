"""Servable students as DeepSeek-V3: transformers' own class, no code of ours, and the same logits everywhere."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from caramba_plugins_llama.export import export
from mla_exports import LAYERS, SERVABLE, again, make_run, model_of, random_tokens

from caramba_core.errors import InputError

STUDENTS: dict[str, dict[str, Any]] = {
    "fewer keys than queries": SERVABLE,
    "scale": {**SERVABLE, "scale": 0.7},
    "another eps": {**SERVABLE, "latent_norm_eps": 1e-2},
    "all frequencies": {**SERVABLE, "rope_dim": 8},
    "one frequency": {**SERVABLE, "rope_dim": 2},
    "yarn": {
        **SERVABLE,
        "rope": {"theta": 50.0, "scaling": "yarn", "factor": 4.0, "original_max_position_embeddings": 8},
    },
}
LISTED = {**SERVABLE, "layout": "free", "rope_dim": 8}
PAIRS = torch.tensor([3, 0, 0, 2])


def theirs(folder: Path, **options: Any) -> Any:
    """What transformers loads, without any code but its own."""
    transformers = importlib.import_module("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def continued(model: Any, prompt: torch.Tensor, count: int, **options: Any) -> Any:
    """The greedy continuation of a prompt."""
    fixed = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "return_dict_in_generate": True}
    return model.generate(prompt, max_new_tokens=count, **fixed, **options)


@pytest.mark.parametrize("name", STUDENTS)
@torch.no_grad()
def test_transformers_own_class_gives_the_same_logits(tmp_path: Path, name: str) -> None:
    mine, tokens = make_run(tmp_path / "run", model_of(STUDENTS[name])), random_tokens(40)
    done = export(tmp_path / "run", tmp_path / "out", form="deepseek_v3")
    assert (done.form, done.exporter) == ("deepseek_v3", "mla")
    assert not list(done.path.glob("*.py"))
    other = theirs(done.path)
    assert type(other).__name__ == "DeepseekV3ForCausalLM"
    assert mine(tokens).std() > 0.1
    torch.testing.assert_close(other(tokens).logits, mine(tokens), rtol=0, atol=1e-4)
    torch.testing.assert_close(again(done.path)(tokens), mine(tokens), rtol=0, atol=1e-4)


@torch.no_grad()
def test_in_float64_nothing_but_the_rounding_of_what_is_stored_is_left(tmp_path: Path) -> None:
    mine, tokens = make_run(tmp_path / "run", model_of(SERVABLE, tied=False)), random_tokens(40)
    done = export(tmp_path / "run", tmp_path / "out", form="deepseek_v3")
    torch.testing.assert_close(again(done.path, torch.float64)(tokens), mine.double()(tokens), rtol=0, atol=1e-6)


@torch.no_grad()
def test_frequencies_in_any_order_are_a_list_that_llama_cpp_has_not(tmp_path: Path) -> None:
    mine, tokens = make_run(tmp_path / "run", model_of(LISTED), pairs=PAIRS), random_tokens(40)
    done = export(tmp_path / "run", tmp_path / "out", form="deepseek_v3")
    assert json.loads((done.path / "config.json").read_text())["rope_scaling"]["rope_type"] == "longrope"
    torch.testing.assert_close(theirs(done.path)(tokens).logits, mine(tokens), rtol=0, atol=1e-4)
    torch.testing.assert_close(again(done.path)(tokens), mine(tokens), rtol=0, atol=1e-4)
    with pytest.raises(InputError, match=r"deepseek2 has no list of rotary frequencies"):
        export(tmp_path / "run", tmp_path / "out.gguf", form="gguf")


@torch.no_grad()
def test_caches_hold_the_latent(tmp_path: Path) -> None:
    """Dynamic and static caches decode alike, and hold ``rank + rope_dim`` values per token and layer."""
    mine, prompt = make_run(tmp_path / "run", model_of(SERVABLE)), random_tokens(9)
    other = theirs(export(tmp_path / "run", tmp_path / "out", form="deepseek_v3").path)
    expected = prompt
    for _ in range(12):
        expected = torch.cat([expected, mine(expected)[:, -1:].argmax(-1)], dim=1)
    found = continued(other, prompt, 12)
    assert torch.equal(found.sequences, expected)
    held = sum(tensor.nbytes for layer in found.past_key_values.layers for tensor in (layer.keys, layer.values))
    assert held == 2 * (9 + 12 - 1) * LAYERS * (SERVABLE["rank"] + SERVABLE["rope_dim"]) * 4
    static = continued(other, prompt, 12, cache_implementation="static", disable_compile=True)
    assert torch.equal(static.sequences, expected)
    layer = static.past_key_values.layers[0]
    assert (layer.keys.shape[1::2], layer.values.shape[1::2]) == ((1, SERVABLE["rank"]), (1, SERVABLE["rope_dim"]))


@torch.no_grad()
def test_lora_save_and_reload(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    make_run(tmp_path / "run", model_of(SERVABLE))
    other = theirs(export(tmp_path / "run", tmp_path / "out", form="deepseek_v3").path)
    tokens = random_tokens(20)
    before = other(tokens).logits
    other.save_pretrained(tmp_path / "saved")
    assert torch.equal(theirs(tmp_path / "saved")(tokens).logits, before)
    assert torch.equal(again(tmp_path / "saved")(tokens), again(tmp_path / "out")(tokens))
    tuned = peft.get_peft_model(other, peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    adapted = tuned(tokens).logits
    assert (adapted - before).abs().max() > 1e-3
    torch.testing.assert_close(adapted, tuned.merge_and_unload()(tokens).logits, rtol=0, atol=1e-4)


@torch.no_grad()
def test_types_and_the_way_back(tmp_path: Path) -> None:
    """A folder in half precision is what caramba reads of it, and a GGUF file of the student has its logits."""
    mine, tokens = make_run(tmp_path / "run", model_of(SERVABLE)), random_tokens(20)
    half = export(tmp_path / "run", tmp_path / "half", form="deepseek_v3", dtype="bfloat16").path
    assert (again(half)(tokens) - mine(tokens)).abs().max() < 0.1 * mine(tokens).std() * 4
    file = export(tmp_path / "run", tmp_path / "out.gguf", form="gguf").path
    torch.testing.assert_close(again(file)(tokens), mine(tokens), rtol=0, atol=1e-4)
    folder = export(file, tmp_path / "folder", form="deepseek_v3").path
    torch.testing.assert_close(theirs(folder)(tokens).logits, mine(tokens), rtol=0, atol=1e-4)


FREE = {**SERVABLE, "layout": "free"}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no norm": (
        {**FREE, "latent_norm_eps": None},
        r"blocks\.0\.attention and 2 more: latent_norm_eps: none .*expected: a number.*costs one value",
    ),
    "offsets of queries": (
        {**FREE, "q_bias": True},
        "q_bias: true is not DeepSeek's; expected: false; a teacher whose",
    ),
    "offsets of keys": ({**FREE, "k_bias": True}, "k_bias: true"),
    "offsets of the output": ({**FREE, "o_bias": True}, "o_bias: true .*it costs nothing"),
    "no position": ({**FREE, "rope_dim": 0}, "rope_dim: 0 is not DeepSeek's; expected: 2 or more"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_deepseek_says_what_would_be(tmp_path: Path, name: str) -> None:
    attention, reason = REFUSED[name]
    make_run(tmp_path / "run", model_of(attention))
    for output, form in ((tmp_path / "out", "deepseek_v3"), (tmp_path / "out.gguf", "gguf")):
        with pytest.raises(InputError, match=rf"(?s)as {form}:.*{reason}.*layout: servable"):
            export(tmp_path / "run", output, form=form)
        assert not output.exists()


def test_layers_that_differ(tmp_path: Path) -> None:
    model = model_of(FREE)
    model["topology"]["layers"][0]["each"] = {"attention.rank": [10, 8, 10]}
    make_run(tmp_path / "run", model)
    with pytest.raises(InputError, match=r"blocks\.1\.attention: rank: 8, and 10 in the first layer"):
        export(tmp_path / "run", tmp_path / "out", form="deepseek_v3")


def test_other_attentions(tmp_path: Path) -> None:
    plain = {"type": "gqa", "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "rope": {"theta": 500.0}}
    make_run(tmp_path / "gqa", model_of(plain))
    with pytest.raises(InputError, match="none of its attentions is mla"):
        export(tmp_path / "gqa", tmp_path / "out", form="deepseek_v3")
    for first, second, place in ((FREE, plain, 1), (plain, FREE, 0)):
        model = model_of(first)
        model["topology"]["layers"][0] |= {"variants": [model_of(second)["topology"]["layers"][0]["layers"]]}
        model["topology"]["layers"][0] |= {"order": [0, 1, 0]}
        make_run(tmp_path / f"mixed_{place}", model)
        with pytest.raises(InputError, match=rf"blocks\.{place}\.attention.*: gqa beside mla; expected: mla in every"):
            export(tmp_path / f"mixed_{place}", tmp_path / "out", form="deepseek_v3")
