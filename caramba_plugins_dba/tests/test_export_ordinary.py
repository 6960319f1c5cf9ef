"""Servable students as ordinary Llamas: transformers' own class, no code of ours, and the same logits everywhere."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from caramba_plugins_llama.export import export
from caramba_plugins_standard.loading import find_loader, lower_checkpoint
from caramba_plugins_standard.loading.filling import load_weights
from dba_exports import DBA, GQA, VOCABULARY, bytes_of, continued, make_run, model_of, random_tokens
from torch import Tensor

from caramba_core.errors import InputError
from caramba_core.nn.build import build
from caramba_core.nn.language_model import LanguageModel

SERVABLE: dict[str, Any] = {
    **GQA,
    "type": "dba",
    "layout": "servable",
    "geo_layout": "shared",
    "sem_dim": 6,
    "geo_dim": 8,
    "v_dim": 14,
}
STUDENTS: dict[str, dict[str, Any]] = {
    "one key": SERVABLE,
    "two groups": {**SERVABLE, "groups": 2, "sem_dim": 8, "geo_dim": 12, "v_dim": 20},
    "all offsets": {**SERVABLE, **dict.fromkeys(("q_bias", "k_bias", "v_bias", "o_bias"), True)},
    "an offset of the output": {**SERVABLE, "o_bias": True},
    "factors of scores": {**SERVABLE, "scale": 0.7, "temperature": True, "gate": "static"},
    "no position": {**SERVABLE, "geo_dim": 0, "v_dim": 6},
    "no content": {**SERVABLE, "sem_dim": 0, "v_dim": 8},
    "yarn": {
        **SERVABLE,
        "rope": {"theta": 50.0, "scaling": "yarn", "factor": 4.0, "original_max_position_embeddings": 8},
    },
}


def student(folder: Path, attention: dict[str, Any], *, window: list[int | None] | None = None) -> LanguageModel:
    """A run with a student whose layers turn with one list of frequencies, some of them twice."""
    model = model_of(attention)
    if window is not None:
        model["topology"]["layers"][0]["each"] = {"attention.window": window}
    return make_run(folder, model, pairs=lambda shape: torch.tensor([3, 0, 0, 2, 1, 3])[: shape[1]].expand(shape))


def again(path: Path, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """What caramba reads as a teacher."""
    checkpoint = find_loader(path)
    model = build(lower_checkpoint(checkpoint), dtype=dtype)
    load_weights(model, checkpoint)
    return model.requires_grad_(False).eval()


def llama(folder: Path, **options: Any) -> Any:
    """What transformers loads, without any code but its own."""
    transformers = importlib.import_module("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()


@pytest.mark.parametrize("name", STUDENTS)
def test_transformers_own_llama_gives_the_same_logits(tmp_path: Path, name: str) -> None:
    mine = student(tmp_path / "run", STUDENTS[name])
    done = export(tmp_path / "run", tmp_path / "out", form="llama")
    assert (done.form, done.exporter) == ("llama", "dba")
    assert not list((tmp_path / "out").glob("*.py"))
    other = llama(tmp_path / "out")
    assert type(other).__name__ == "LlamaForCausalLM"
    tokens = random_tokens(40)
    with torch.no_grad():
        assert mine(tokens).std() > 0.1
        torch.testing.assert_close(mine(tokens), other(tokens).logits, rtol=0, atol=5e-5)


@pytest.mark.parametrize("name", STUDENTS)
def test_it_is_a_teacher_again_from_both_formats(tmp_path: Path, name: str) -> None:
    mine = student(tmp_path / "run", STUDENTS[name])
    tokens = random_tokens(40)
    for output, form in ((tmp_path / "out", "llama"), (tmp_path / "out.gguf", "gguf")):
        export(tmp_path / "run", output, form=form)
        torch.testing.assert_close(mine(tokens), again(output)(tokens), rtol=0, atol=5e-5)


def test_in_float64_nothing_but_the_rounding_of_what_is_stored_is_left(tmp_path: Path) -> None:
    mine = student(tmp_path / "run", STUDENTS["all offsets"])
    export(tmp_path / "run", tmp_path / "out", form="llama")
    tokens = random_tokens(40)
    wide = mine.double()
    torch.testing.assert_close(wide(tokens), again(tmp_path / "out", torch.float64)(tokens), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["one key", "two groups"])
def test_caches_hold_what_the_plan_says(tmp_path: Path, name: str) -> None:
    """Dynamic, static and quantized caches decode alike; the first two are as large as planned."""
    transformers = importlib.import_module("transformers")
    mine = student(tmp_path / "run", STUDENTS[name])
    export(tmp_path / "run", tmp_path / "out", form="llama")
    other = llama(tmp_path / "out")
    prompt = random_tokens(9)
    expected = prompt
    for _ in range(12):
        with torch.no_grad():
            expected = torch.cat([expected, mine(expected)[:, -1:].argmax(-1)], dim=1)
    found = continued(other, prompt, 12)
    assert torch.equal(found.sequences, expected)
    tokens = 2 * (9 + 12 - 1)
    planned = 3 * 2 * STUDENTS[name]["v_dim"]  # three layers, keys and values
    assert bytes_of(found.past_key_values) == tokens * planned * 4
    static = continued(other, prompt, 12, cache_implementation="static", disable_compile=True)
    assert torch.equal(static.sequences, expected)
    layer = static.past_key_values.layers[0]
    assert (layer.keys.shape[1], layer.keys.shape[3]) == (
        STUDENTS[name].get("groups", 1),
        STUDENTS[name]["v_dim"] // STUDENTS[name].get("groups", 1),
    )
    assert transformers.StaticCache is type(static.past_key_values)


def test_quantized_caches(tmp_path: Path) -> None:
    """transformers' own in 8 bits, and quanto's where it is installed, in groups that divide the width of a key."""
    transformers = importlib.import_module("transformers")
    wide = {**SERVABLE, "sem_dim": 8, "geo_dim": 8, "v_dim": 16}
    mine = student(tmp_path / "run", wide)
    other, tokens = llama(export(tmp_path / "run", tmp_path / "out", form="llama").path), random_tokens(12)
    with torch.no_grad():
        expected, cache = mine(tokens), transformers.QuantizedCache("fp8", other.config)
        parts = [other(part, past_key_values=cache).logits for part in tokens.split([5, *[1] * 7], dim=1)]
        assert (torch.cat(parts, dim=1) - expected).abs().max() < 0.2 * expected.abs().max()
    pytest.importorskip("optimum.quanto")
    config = {"backend": "quanto", "nbits": 4, "residual_length": 4, "q_group_size": 16}
    found = continued(other, tokens, 6, cache_implementation="quantized", cache_config=config)
    assert found.sequences.shape == (2, 18)


def test_lora_save_and_reload(tmp_path: Path) -> None:
    peft = importlib.import_module("peft")
    student(tmp_path / "run", STUDENTS["all offsets"])
    export(tmp_path / "run", tmp_path / "out", form="llama")
    other, tokens = llama(tmp_path / "out"), random_tokens(20)
    with torch.no_grad():
        before = other(tokens).logits
    other.save_pretrained(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(llama(tmp_path / "saved")(tokens).logits, before)
    assert torch.equal(again(tmp_path / "saved")(tokens), again(tmp_path / "out")(tokens))
    tuned = peft.get_peft_model(other, peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    with torch.no_grad():
        adapted = tuned(tokens).logits
        merged = tuned.merge_and_unload()(tokens).logits
    assert (adapted - before).abs().max() > 1e-3
    torch.testing.assert_close(adapted, merged, rtol=0, atol=1e-4)


def test_windows_make_it_another_family(tmp_path: Path) -> None:
    mine = student(tmp_path / "run", SERVABLE, window=[None, 7, None])
    done = export(tmp_path / "run", tmp_path / "out", form="llama")
    assert type(llama(done.path)).__name__ == "MinistralForCausalLM"
    tokens = random_tokens(40)
    with torch.no_grad():
        torch.testing.assert_close(mine(tokens), llama(done.path)(tokens).logits, rtol=0, atol=5e-5)
    with pytest.raises(InputError, match="its layers see a window"):
        export(tmp_path / "run", tmp_path / "out.gguf", form="gguf")


def test_without_a_format_it_comes_with_its_code_and_says_what_else_there_is(tmp_path: Path) -> None:
    student(tmp_path / "run", SERVABLE)
    done = export(tmp_path / "run", tmp_path / "out")
    assert (done.form, done.others) == ("caramba", ("llama", "gguf"))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "rotary keys of each head": (
        DBA,
        r"model\.blocks\.0\.attention and 2 more: geo_layout: per_head is not servable: .*it costs parameters",
    ),
    "another width of values": (
        {**SERVABLE, "layout": "free", "v_dim": 10},
        r"v_dim: 10 is not servable: .*as wide as its keys \(14\); expected: 14; it costs",
    ),
    "a null key": ({**SERVABLE, "layout": "free", "null": True}, "null: true is not servable.*it costs"),
    "a gate that is read": (
        {**SERVABLE, "layout": "free", "gate": "dynamic"},
        "gate: dynamic is not servable: .*no gate that is read.*expected: static or none",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_ordinary_llama_says_what_would_be(tmp_path: Path, name: str) -> None:
    attention, reason = REFUSED[name]
    make_run(tmp_path / "run", model_of(attention))
    for output, form in ((tmp_path / "out", "llama"), (tmp_path / "out.gguf", "gguf")):
        with pytest.raises(InputError, match=rf"(?s)as {form}:.*{reason}.*layout: servable"):
            export(tmp_path / "run", output, form=form)
        assert not output.exists()


def test_layers_that_differ(tmp_path: Path) -> None:
    other = {**SERVABLE, "sem_dim": 4, "v_dim": 12}
    make_run(tmp_path / "sizes", model_of(SERVABLE, other))
    with pytest.raises(InputError, match=r"blocks\.1\.attention: 1 x 12 values, and 1 x 14 in the first layer"):
        export(tmp_path / "sizes", tmp_path / "out", form="llama")
    make_run(tmp_path / "mixed", model_of(SERVABLE, GQA))
    with pytest.raises(InputError, match=r"blocks\.1\.attention: gqa beside dba"):
        export(tmp_path / "mixed", tmp_path / "out", form="llama")
    make_run(tmp_path / "lists", model_of(SERVABLE))
    with pytest.raises(InputError, match="turn with other frequencies than those of the first layer"):
        export(tmp_path / "lists", tmp_path / "out", form="llama")


def test_half_precision_rounds_once(tmp_path: Path) -> None:
    """What is absorbed is multiplied in float64, and rounded when it is written."""
    mine = student(tmp_path / "run", SERVABLE)
    export(tmp_path / "run", tmp_path / "wide", form="llama")
    export(tmp_path / "run", tmp_path / "half", form="llama", dtype="bfloat16")
    whole: dict[str, Tensor] = again(tmp_path / "wide").state_dict()
    half = again(tmp_path / "half", torch.bfloat16).state_dict()
    assert all(torch.equal(values.bfloat16(), half[key]) for key, values in whole.items())
    assert mine.graph.vocab_size == VOCABULARY
