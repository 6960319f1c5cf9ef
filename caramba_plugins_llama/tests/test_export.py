"""Exported models: loaded by transformers as they are, read back by caramba bit for bit, or nothing is written."""

from __future__ import annotations

import errno
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from caramba_plugins_llama.export import export
from caramba_plugins_llama.families import FAMILIES
from caramba_plugins_standard.generation import generate
from caramba_plugins_standard.loading import find_loader
from caramba_plugins_standard.loading.filling import load_weights
from safetensors import SafetensorError

from caramba_core.cli import main
from caramba_core.errors import InputError
from caramba_core.run.checkpoint import save_checkpoint

from .conftest import LATENT, quiet, random_tokens, read_model, write_oracle
from .runs import decoder, make_run
from .test_tokenizers import TEXT, metadata, trained

GQA: dict[str, Any] = {"type": "gqa", "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "rope": {"theta": 500.0}}
LLAMA3 = {
    "theta": 100.0,
    "scaling": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LISTED = {"theta": 100.0, "scaling": "listed", "factors": [1.0, 0.25, 1e30, 3.0]}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", decoder(GQA)),
    "tied": ("llama", decoder(GQA, tied=True)),
    "a head each": ("llama", decoder({"type": "mha", "n_heads": 3, "head_dim": 8, "rope": {"theta": 500.0}})),
    "offsets": ("llama", decoder({**GQA, "qkv_bias": True, "o_bias": True}, mlp_bias=True)),
    "linear": ("llama", decoder({**GQA, "rope": {"theta": 300.0, "scaling": "linear", "factor": 2.5}})),
    "dynamic": (
        "llama",
        decoder(
            {
                **GQA,
                "rope": {"theta": 300.0, "scaling": "dynamic", "factor": 2.0, "original_max_position_embeddings": 16},
            }
        ),
    ),
    "llama3": ("llama", decoder({**GQA, "rope": LLAMA3})),
    "yarn": (
        "llama",
        decoder(
            {**GQA, "rope": {"theta": 50.0, "scaling": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}}
        ),
    ),
    "listed": ("llama", decoder({**GQA, "rope": LISTED})),
    "mistral": ("mistral", decoder({**GQA, "window": 7})),
    "qwen2": ("qwen2", decoder({**GQA, "qkv_bias": True})),
    "qwen2 windows": ("qwen2", decoder({**GQA, "qkv_bias": True}, each={"attention.window": [None, 9]})),
    "qwen3": ("qwen3", decoder({**GQA, "qk_norm_eps": 1e-5})),
    "ministral windows": ("ministral", decoder(GQA, each={"attention.window": [None, 9]})),
}


def theirs(folder: Path) -> Any:
    transformers = importlib.import_module("transformers")
    with quiet():
        return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("name", MODELS)
def test_transformers_loads_it_as_it_is(tmp_path: Path, name: str) -> None:
    family, model = MODELS[name]
    mine = make_run(tmp_path / "run", model)
    done = export(tmp_path / "run", tmp_path / "out")
    assert (done.exporter, done.dtype) == ("standard", "float32")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == family
    other = theirs(tmp_path / "out")
    tokens = random_tokens(40, vocabulary=61)
    with torch.no_grad():
        torch.testing.assert_close(mine(tokens), other(tokens).logits, rtol=0, atol=1e-5)
    prompt = tokens[:, :5]
    expected = other.generate(prompt, max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(generate(mine, prompt, 20), expected)


@pytest.mark.parametrize("offsets", ["o_bias", "qkv_bias"])
def test_offsets_that_a_family_has_together_are_zero_where_the_model_has_none(tmp_path: Path, offsets: str) -> None:
    model = decoder({**GQA, offsets: True}, mlp_bias=True)  # only llama has offsets in the MLP
    mine = make_run(tmp_path / "run", model)
    export(tmp_path / "run", tmp_path / "out")
    tokens = random_tokens(40, vocabulary=61)
    with torch.no_grad():
        torch.testing.assert_close(mine(tokens), theirs(tmp_path / "out")(tokens).logits, rtol=0, atol=1e-5)
    assert torch.equal(mine(tokens), read_model(tmp_path / "out")(tokens))


@pytest.mark.parametrize("name", MODELS)
def test_caramba_reads_it_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    mine = make_run(tmp_path / "run", MODELS[name][1])
    export(tmp_path / "run", tmp_path / "out")
    again = read_model(tmp_path / "out")
    assert again.state_dict().keys() == mine.state_dict().keys()
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in mine.state_dict().items())
    assert torch.equal(mine(random_tokens(40, vocabulary=61)), again(random_tokens(40, vocabulary=61)))


def test_what_transformers_wrote_comes_out_the_same(tmp_path: Path) -> None:
    """transformers -> caramba -> transformers."""
    oracle = write_oracle(tmp_path / "hf", "llama", tie_word_embeddings=True)
    checkpoint = find_loader(tmp_path / "hf")
    model = make_run(tmp_path / "run", json.loads(json.dumps(checkpoint.model())))
    from safetensors.torch import load_file

    load_weights(model, checkpoint)
    save_checkpoint(tmp_path / "run" / "checkpoints" / "step_000002", model=model, optimizer=None, state={})
    export(tmp_path / "run", tmp_path / "out", origin=str(tmp_path / "hf"))
    before, after = load_file(tmp_path / "hf" / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    mine, original = theirs(tmp_path / "out").config.to_dict(), oracle.config.to_dict()
    for key in (
        "rope_parameters",
        "max_position_embeddings",
        "eos_token_id",
        "bos_token_id",
        "pad_token_id",
        "head_dim",
    ):
        assert mine[key] == original[key], key


def test_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caramba_plugins_llama.export._SHARD_BYTES", 6000)
    mine = make_run(tmp_path / "run", decoder(GQA))
    done = export(tmp_path / "run", tmp_path / "out")
    assert "model.safetensors.index.json" in done.files
    assert sum(name.endswith(".safetensors") for name in done.files) > 3
    tokens = random_tokens(9, vocabulary=61)
    with torch.no_grad():
        torch.testing.assert_close(mine(tokens), theirs(tmp_path / "out")(tokens).logits, rtol=0, atol=1e-5)
    assert torch.equal(read_model(tmp_path / "out")(tokens), mine(tokens))


def test_types(tmp_path: Path) -> None:
    make_run(tmp_path / "run", decoder(GQA), dtype=torch.bfloat16)
    assert export(tmp_path / "run", tmp_path / "auto").dtype == "bfloat16"
    assert theirs(tmp_path / "auto").dtype == torch.bfloat16
    assert export(tmp_path / "run", tmp_path / "wide", dtype="float32").dtype == "float32"


def test_tokenizers_go_with_it(tmp_path: Path) -> None:
    tokenizer = trained("smollm")
    write_oracle(tmp_path / "hf", "llama", bos_token_id=1, eos_token_id=2, pad_token_id=3)
    tokenizer.save(str(tmp_path / "hf" / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_start|>"}
    (tmp_path / "hf" / "tokenizer_config.json").write_text(json.dumps(settings))
    make_run(tmp_path / "run", decoder(GQA, vocabulary=400), teacher=str(tmp_path / "hf"))
    export(tmp_path / "run", tmp_path / "out")
    auto = importlib.import_module("transformers").AutoTokenizer.from_pretrained(tmp_path / "out")
    expected = tokenizer.encode(TEXT, add_special_tokens=False).ids
    assert auto.encode(TEXT, add_special_tokens=False) == expected
    mine, before = find_loader(tmp_path / "out").tokenizer(), find_loader(tmp_path / "hf").tokenizer()
    assert mine is not None
    assert before is not None
    assert mine.identity == before.identity
    config = theirs(tmp_path / "out").config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 3)
    assert config.max_position_embeddings == 64


def test_tokenizers_of_gguf_go_with_it(tmp_path: Path) -> None:
    from .test_gguf import write_gguf

    original = trained("smollm")
    write_oracle(tmp_path / "hf", "llama")
    extra = {
        **metadata(original, "smollm"),
        "tokenizer.ggml.bos_token_id": original.token_to_id("<|im_start|>"),
        "tokenizer.ggml.eos_token_id": original.token_to_id("<|endoftext|>"),
        "tokenizer.chat_template": "{{ messages }}",
    }
    write_gguf(tmp_path / "m.gguf", tmp_path / "hf", "llama", extra=extra)
    make_run(tmp_path / "run", decoder(GQA, vocabulary=400), teacher=str(tmp_path / "m.gguf"))
    export(tmp_path / "run", tmp_path / "out")
    auto = importlib.import_module("transformers").AutoTokenizer.from_pretrained(tmp_path / "out")
    assert auto.encode(TEXT, add_special_tokens=False) == original.encode(TEXT, add_special_tokens=False).ids
    assert auto.eos_token == "<|endoftext|>"
    assert auto.chat_template == "{{ messages }}"
    assert theirs(tmp_path / "out").generation_config.eos_token_id == original.token_to_id("<|endoftext|>")


def test_the_card_holds_the_measured_table(tmp_path: Path) -> None:
    make_run(tmp_path / "run", decoder(GQA))
    export(tmp_path / "run", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| perplexity on held-out text | 12.500 ± 0.500 | 20.000 ± 0.750 | 13.750 ± 0.250 |" in card
    assert "| cached bytes per token at a context of 1,024 | 4,096 | 2,048 | 2,048 |" in card
    assert "| cached bytes once per sequence | 0 | 512 | 512 |" in card
    assert 'from_pretrained("out")' in card
    assert "Run `n/g/r`, seed 3" in card


# ------------------------------------------------------------------------------------------------ what cannot be


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (decoder({**GQA, "scale": 0.3}), "scale would be None, not 0.3"),
        (decoder({**GQA, "rope": None}), "rope would be"),
        (decoder(GQA, repeat=1, each={"attention.n_kv_heads": [1]}, name="layers"), "nested blocks, named blocks"),
        (decoder(GQA, each={"attention.n_kv_heads": [1, 2]}), "blocks 0 and 1 differ in their attention"),
        (decoder({"type": "linear", "d_out": 24, "name": "attention"}), "model.blocks.0.attention is linear"),
    ],
    ids=["scale", "no positions", "name", "sizes", "layer"],
)
def test_models_that_no_family_expresses(tmp_path: Path, model: dict[str, Any], reason: str) -> None:
    make_run(tmp_path / "run", model)
    with pytest.raises(InputError, match=rf"no installed exporter can write this model(.|\n)*({reason})"):
        export(tmp_path / "run", tmp_path / "out")
    assert left_in(tmp_path) == {"run"}


def test_other_shapes_of_model(tmp_path: Path) -> None:
    model = decoder(GQA)
    blocks = model["topology"]["layers"][0]
    blocks["layers"] = [blocks["layers"][0]]
    make_run(tmp_path / "run", model)
    with pytest.raises(InputError, match=r"model\.blocks\.0 is made of \[\['norm', 'attention'\]\]"):
        export(tmp_path / "run", tmp_path / "out")


def test_folders_that_are_in_the_way_or_hold_no_run(tmp_path: Path) -> None:
    make_run(tmp_path / "run", decoder(GQA))
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="exists already"):
        export(tmp_path / "run", tmp_path / "out")
    with pytest.raises(InputError, match="is not a run's folder"):
        export(tmp_path, tmp_path / "new")
    for step in (1, 2):
        checkpoint = tmp_path / "run" / "checkpoints" / f"step_00000{step}"
        for path in checkpoint.iterdir():
            path.unlink()
        checkpoint.rmdir()
    with pytest.raises(InputError, match="holds no checkpoint"):
        export(tmp_path / "run", tmp_path / "new")


def test_a_teacher_that_is_gone(tmp_path: Path) -> None:
    make_run(tmp_path / "run", decoder(GQA), teacher="nowhere")
    with pytest.raises(InputError, match=r"come from nowhere, which cannot be opened(.|\n)*--origin"):
        export(tmp_path / "run", tmp_path / "out")
    assert left_in(tmp_path) == {"run"}


@pytest.mark.parametrize("place", ["file/out", "file/deeper/out", "dangling/out"])
def test_a_folder_that_cannot_be_made(tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "run", decoder(GQA))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(SystemExit) as ended:
        main(["export", str(tmp_path / "run"), "-o", str(tmp_path / place)])
    assert ended.value.code == 2
    assert "cannot be made" in capsys.readouterr().err
    assert left_in(tmp_path) == {"run", "file", "dangling"}
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("shipped", [True, False])
def test_the_card_loads_what_is_there(tmp_path: Path, shipped: bool) -> None:
    write_oracle(tmp_path / "hf", "llama")
    if shipped:
        trained("smollm").save(str(tmp_path / "hf" / "tokenizer.json"))
    make_run(tmp_path / "run", decoder(GQA, vocabulary=400), teacher=str(tmp_path / "hf"))
    export(tmp_path / "run", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("AutoTokenizer" in card) is (tmp_path / "out" / "tokenizer.json").exists() is shipped
    assert ("without a tokenizer" in card) is not shipped


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    make_run(tmp_path / "run", decoder(GQA))

    def full(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("caramba_core.run.checkpoint.save_file", full)
    with pytest.raises(SystemExit) as ended:
        main(["export", str(tmp_path / "run"), "-o", str(tmp_path / "out")])
    assert ended.value.code == 5
    assert left_in(tmp_path) == {"run"}


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "run", decoder(GQA))
    with pytest.raises(SystemExit) as ended:
        main(["export", str(tmp_path / "run"), "-o", str(tmp_path / "out"), "--dtype", "bfloat16"])
    assert ended.value.code == 0
    said = capsys.readouterr().err
    assert "as llama: " in said
    assert "parameters in bfloat16, by the exporter standard" in said
    assert "it can also be written --as gguf" in said
    assert theirs(tmp_path / "out").dtype == torch.bfloat16


# ------------------------------------------------------------------------------------------------ other families

NEW = [name for name in FAMILIES if name not in ("llama", "mistral", "ministral", "qwen2", "qwen3", *LATENT)]
TURNED = {"partial_rotary_factor": 0.5, "rope_theta": 100.0, "rope_type": "default"}


@pytest.mark.parametrize("family", NEW)
def test_a_family_comes_out_as_it_came(tmp_path: Path, family: str) -> None:
    """Every tensor in its order of rows, projections that are stored as one together again, the configuration."""
    windows = {} if FAMILIES[family].window == "never" else {"sliding_window": 7}
    parts = {"rope_parameters": TURNED} if FAMILIES[family].partial_rotary else {}
    oracle = write_oracle(tmp_path / "hf", family, **windows, **parts)
    export(tmp_path / "hf", tmp_path / "out")
    from safetensors.torch import load_file

    before, after = load_file(tmp_path / "hf" / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    other, tokens = theirs(tmp_path / "out"), random_tokens(40)
    assert type(other) is type(oracle)
    with torch.no_grad():
        torch.testing.assert_close(other(tokens).logits, oracle(tokens).logits, rtol=0, atol=5e-5)
    found = find_loader(tmp_path / "out")
    assert found.model() == find_loader(tmp_path / "hf").model()


@pytest.mark.parametrize(
    ("family", "place", "fields", "words"),
    [
        ("olmo2", (0, 1), {"eps": 0.01}, r"as olmo2: model\.blocks\.0\.norm is not what it started from: eps would be"),
        (
            "granite",
            (0, 2),
            {"by": 0.5},
            r"as granite: model\.blocks\.0\.multiply is not .*: by would be 0\.3, not 0\.5",
        ),
        ("glm4", (1, 1), {"d_ff": 40}, r"as glm4: model\.blocks\.0\.mlp is not .*: d_ff would be 80, not 40"),
        (
            "exaone4",
            (1, 1),
            {"type": "layer_norm"},
            r"as exaone4: model\.blocks\.0\.norm_2 is layer_norm in nested 1 in residual 1",
        ),
    ],
)
def test_a_family_that_was_changed_is_refused(
    tmp_path: Path, family: str, place: tuple[int, int], fields: dict[str, Any], words: str
) -> None:
    more = {"granite": {"residual_multiplier": 0.3}, "exaone4": {"layer_types": ["full_attention"] * 3}}
    write_oracle(tmp_path / "hf", family, **more.get(family, {}))
    model = json.loads(json.dumps(find_loader(tmp_path / "hf").model()))
    nested = next(layer for layer in model["topology"]["layers"] if layer["type"] == "nested")
    nested["layers"][place[0]]["layers"][place[1]].update(fields)
    make_run(tmp_path / "run", model)
    with pytest.raises(InputError, match=words):
        export(tmp_path / "run", tmp_path / "out", origin=str(tmp_path / "hf"))
    assert not (tmp_path / "out").exists()
