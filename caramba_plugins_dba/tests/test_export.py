"""Exported DBA models in transformers: the same logits, the same continuation, the plan's cache; back bit for bit."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import attrs
import pytest
import torch
from caramba_plugins_dba.attention import DecoupledBottleneckAttention
from caramba_plugins_dba.export import exporter
from caramba_plugins_llama.checking import check_logits
from caramba_plugins_llama.export import export
from caramba_plugins_llama.exporting import Original
from caramba_plugins_standard.generation import generate, generate_each
from caramba_plugins_standard.gqa import GroupedQueryAttention
from caramba_plugins_standard.loading import find_loader
from caramba_plugins_standard.loading.filling import load_weights
from caramba_plugins_standard.quantized import Blocks
from caramba_plugins_standard.training.rounding import RoundingCache
from dba_exports import DBA, GQA, VOCABULARY, bytes_of, continued, make_run, model_of, random_tokens, theirs
from torch import Tensor

from caramba_core.components import component
from caramba_core.errors import InputError, VerificationFailed
from caramba_core.lowering import lower
from caramba_core.manifest.structure import structure_model
from caramba_core.nn.build import build
from caramba_core.nn.frame import Frame
from caramba_core.nn.language_model import LanguageModel
from caramba_core.plan.nodes import plan_model

pytestmark = pytest.mark.usefixtures("remote_code")

LLAMA3 = {
    "theta": 100.0,
    "scaling": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"theta": 50.0, "scaling": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
BIASES = {"q_bias": True, "k_bias": True, "v_bias": True, "o_bias": True}

WINDOW = 9
TOGETHER: dict[str, Any] = {"temperature": True, "tied_semantic": True, "null": True, "window": WINDOW, **BIASES}
"""Every option at once, but for the gate, of which there are two."""

OPTIONS: dict[str, dict[str, Any]] = {
    "static gate": {"gate": "static"},
    "dynamic gate": {"gate": "dynamic"},
    "temperature": {"temperature": True},
    "tied semantic": {"tied_semantic": True},
    "null": {"null": True},
    "window": {"window": WINDOW},
    "all with a static gate": {**TOGETHER, "gate": "static"},
    "all with a dynamic gate": {**TOGETHER, "gate": "dynamic"},
}
SIX = {**DBA, "n_heads": 6}
OF_OPTIONS = {name: {**SIX, **options} for name, options in OPTIONS.items()}
"""Each option alone and all together, three query heads a key/value head."""

JOINT: dict[str, Any] = {**SIX, "sem_dim": 0, "geo_dim": 6, "geo_layout": "shared", "latent": "joint", "v_dim": 14}

ATTENTIONS: dict[str, dict[str, Any]] = {
    "shared latents": DBA,
    "offsets": {**DBA, **BIASES},
    "keys a head": {**DBA, "k_layout": "per_head"},
    "values a head": {**DBA, "v_layout": "per_head"},
    "shared rotary key": {**DBA, "geo_layout": "shared", "geo_dim": 6, **BIASES},
    "shared rotary key, the rest a head": {
        **OF_OPTIONS["all with a static gate"],
        "geo_layout": "shared",
        "k_layout": "per_head",
        "v_layout": "per_head",
    },
    "everything a head": {**DBA, "k_layout": "per_head", "v_layout": "per_head", **BIASES},
    "semantic alone": {**DBA, "geo_dim": 0, "rope": None},
    "rotary alone": {**DBA, "sem_dim": 0},
    "semantic a head alone": {**DBA, "geo_dim": 0, "rope": None, "k_layout": "per_head"},
    "one group": {**DBA, "n_kv_heads": 1},
    "a head each": {**DBA, "n_kv_heads": 4, "v_layout": "per_head", "v_dim": 12},
    "scale": {**DBA, "scale": 0.2},
    "llama3": {**DBA, "rope": LLAMA3},
    "yarn": {**DBA, "rope": YARN},
    "wide values": {**DBA, "v_dim": 30},
    **OF_OPTIONS,
    "all and everything a head": {
        **OF_OPTIONS["all with a dynamic gate"],
        "k_layout": "per_head",
        "v_layout": "per_head",
    },
    "tied semantic a head": {**OF_OPTIONS["tied semantic"], "k_layout": "per_head"},
    "null, offsets": {**OF_OPTIONS["null"], **BIASES},
    "null, semantic alone": {**OF_OPTIONS["null"], "geo_dim": 0, "rope": None},
    "null, rotary alone": {**OF_OPTIONS["null"], "sem_dim": 0},
    "null, scale": {**OF_OPTIONS["null"], "scale": 0.2},
    "null in a full width": {**OF_OPTIONS["null"], "sem_dim": 4, "v_dim": 30},
    "window of one token": {**OF_OPTIONS["window"], "window": 1},
    "window wider than the text": {**OF_OPTIONS["window"], "window": 50},
    "joint latent": JOINT,
    "joint latent, pairs of heads": {**JOINT, "geo_layout": "per_head", "geo_dim": 8},
    "joint latent alone": {**JOINT, "geo_dim": 0, "rope": None},
    "joint latent, many options": {**JOINT, **BIASES, "gate": "dynamic", "temperature": True, "window": WINDOW},
}
JOINTS = [name for name in ATTENTIONS if name.startswith("joint")]
ROUNDED: dict[str, dict[str, Any]] = {
    "joint in int4": {**JOINT, "cache": {"type": "int4", "block": 128}},
    "joint in int4, odd widths": {**JOINT, "v_dim": 13, "cache": {"type": "int4", "block": 4}},
    "joint in int8": {**JOINT, "cache": {"type": "int8", "block": 8}},
    "joint latent alone in int8": {**JOINT, "geo_dim": 0, "rope": None, "cache": "int8"},
    "separate in int4": {**DBA, "cache": {"type": "int4", "block": 8}},
    "all in int8": {
        **OF_OPTIONS["all with a static gate"],
        "k_layout": "per_head",
        "v_layout": "per_head",
        "cache": "int8",
    },
}
"""Attentions whose own cache is quantized: every pass reads what it gives back."""


@pytest.mark.parametrize("name", ATTENTIONS)
def test_logits_continuation_and_cache(tmp_path: Path, name: str) -> None:
    mine = make_run(tmp_path / "run", model_of(ATTENTIONS[name], tied=name != "offsets"))
    assert export(tmp_path / "run", tmp_path / "out").exporter == "dba"
    other = theirs(tmp_path / "out")
    tokens = random_tokens(40)
    with torch.no_grad():
        expected = mine(tokens)
        assert expected.abs().max() > 0.5
        torch.testing.assert_close(other(tokens).logits, expected, rtol=0, atol=1e-5)
    prompt = tokens[:, :6]
    found = continued(other, prompt, 30)
    assert torch.equal(found.sequences, generate(mine, prompt, 30))

    a_token = sum(ATTENTIONS[name][part] for part in ("sem_dim", "geo_dim", "v_dim"))
    held = min(35, ATTENTIONS[name].get("window") or 35)
    planned = plan_model(mine.graph, context=35).cached_bytes(35)
    assert bytes_of(found.past_key_values) == mine.new_cache(2, capacity=35).bytes == 2 * planned
    assert planned == 3 * held * 4 * a_token


def read_back(model: LanguageModel, tokens: Tensor) -> Tensor:
    """Logits of a pass that reads keys and values as the attentions' own cache stores them."""
    cache = model.new_cache(len(tokens), capacity=tokens.shape[1])
    return model.logits(model.hidden(tokens, Frame.of(tokens, cache=cache)))


@pytest.mark.parametrize("name", ROUNDED)
def test_a_cache_in_few_bits(tmp_path: Path, name: str) -> None:
    """The same logits in one pass and in parts, as many bytes as planned, and back into caramba.

    In float64, where no sum's order decides which of two codes is nearer.
    """
    mine = make_run(tmp_path / "run", model_of(ROUNDED[name])).double()
    export(tmp_path / "run", tmp_path / "out")
    other, tokens = theirs(tmp_path / "out").double(), random_tokens(33)
    with torch.no_grad():
        expected = read_back(mine, tokens)
        assert (expected - mine(tokens)).abs().max() > 1e-3
        torch.testing.assert_close(other(tokens).logits, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(other(tokens, use_cache=False).logits, expected, rtol=0, atol=1e-5)
        past, parts = None, []
        for part in tokens.split([7, 1, 5, 8, 1, 11], dim=1):
            output = other(part, past_key_values=past, use_cache=True)
            past = output.past_key_values
            parts.append(output.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=0, atol=1e-5)
    assert bytes_of(past) == 2 * plan_model(mine.graph, context=33).cached_bytes(33)
    assert torch.equal(continued(other, tokens[:, :6], 20).sequences, generate(mine, tokens[:, :6], 20))
    checkpoint = find_loader(tmp_path / "out")
    again = build(lower(structure_model(checkpoint.model())))
    load_weights(again, checkpoint)
    assert torch.equal(read_back(again.double(), tokens), expected)


@pytest.mark.parametrize("name", ["joint in int4", "joint latent"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_check_reads_the_cache_back(tmp_path: Path, name: str, dtype: str) -> None:
    """What the exported model reads of its own cache in few bits, caramba's model reads for the comparison."""
    mine = make_run(tmp_path / "run", model_of({**ATTENTIONS, **ROUNDED}[name]))
    export(tmp_path / "run", tmp_path / "out", dtype=dtype)
    words = {f"w{index}": index for index in range(VOCABULARY)}
    model = {"type": "WordLevel", "vocab": words, "unk_token": "w0"}
    tokenizer = {"version": "1.0", "model": model, "pre_tokenizer": {"type": "Whitespace"}}
    empty = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder")) | {"added_tokens": []}
    (tmp_path / "out" / "tokenizer.json").write_text(json.dumps(tokenizer | empty))
    text = " ".join(f"w{index}" for index in random_tokens(30, batch=1)[0].tolist())

    def checked(tensors: dict[str, Tensor]) -> str:
        return check_logits(text, tmp_path / "out", mine.graph, tensors, kind=dtype, code=True, context=64)

    said = checked(dict(mine.state_dict()))
    assert said.startswith("30 tokens in transformers")
    if name == "joint in int4":  # weights as they are stored, in float64
        assert float(said.split(" at most")[0].split()[-1]) < 1e-9
    with pytest.raises(VerificationFailed, match="another one"):
        checked(
            {
                **mine.state_dict(),
                "blocks.0.attention.k_up_proj": mine.get_parameter("blocks.0.attention.k_up_proj") * 9,
            }
        )


def test_gradients_pass_a_rounded_cache(tmp_path: Path) -> None:
    """As if nothing was rounded, of this pass's tokens: those of caramba's training with such a cache."""
    mine = make_run(tmp_path / "run", model_of(ROUNDED["joint in int4"])).requires_grad_(True)
    export(tmp_path / "run", tmp_path / "out")
    other, tokens = theirs(tmp_path / "out").train(), random_tokens(12)
    other(tokens).logits.square().mean().backward()
    cache = RoundingCache(mine.graph)
    mine.logits(mine.hidden(tokens, Frame.of(tokens, cache=cache))).square().mean().backward()
    theirs_of = {key: parameter.grad for key, parameter in other.named_parameters()}
    for name, key in (
        ("v_proj", "v_proj.weight"),
        ("k_geo_proj", "k_geo_proj.weight"),
        ("k_up_proj", "k_up_proj.weight"),
    ):
        expected = mine.get_parameter(f"blocks.1.attention.{name}").grad
        assert expected is not None
        torch.testing.assert_close(theirs_of[f"model.layers.1.self_attn.{key}"], expected, rtol=1e-4, atol=1e-6)


def test_a_quantized_cache_is_not_quantized_again(tmp_path: Path) -> None:
    make_run(tmp_path / "run", model_of(ROUNDED["joint in int4"]))
    export(tmp_path / "run", tmp_path / "out")
    other = theirs(tmp_path / "out")
    past = importlib.import_module("transformers").DynamicCache()
    past.layers.append(importlib.import_module("transformers.cache_utils").DynamicLayer())
    past.layers[0].q_group_size = 64  # what marks transformers' quantized layers
    with pytest.raises(ValueError, match="layer 0 caches 4 bits a value by itself"):
        other(random_tokens(5), past_key_values=past)


def test_storages_that_the_modeling_file_does_not_know_are_refused() -> None:
    @component
    class Halves(Blocks):
        """Another storage."""

        bits: ClassVar[int] = 2

    graph = lower(structure_model(model_of(DBA)))
    dba = next(node.config for node in graph.attentions().values())
    with pytest.raises(exporter.ExportError, match="has cache: Halves"):
        exporter._storage(
            SimpleNamespace(config=attrs.evolve(dba, cache=Halves()), node=SimpleNamespace(name="blocks.0.attention"))
        )


@pytest.mark.parametrize("name", ["shared latents", "everything a head", "yarn", *OF_OPTIONS, *JOINTS])
def test_back_into_caramba_bit_for_bit(tmp_path: Path, name: str) -> None:
    mine = make_run(tmp_path / "run", model_of(ATTENTIONS[name]))
    export(tmp_path / "run", tmp_path / "out")
    theirs(tmp_path / "out").save_pretrained(tmp_path / "again")  # and through transformers' own hands
    for folder in ("out", "again"):
        checkpoint = find_loader(tmp_path / folder)
        again = build(lower(structure_model(checkpoint.model())))
        load_weights(again, checkpoint)
        expected = mine.state_dict()
        assert again.state_dict().keys() == expected.keys()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in again.state_dict().items())
        assert torch.equal(again(random_tokens(20)), mine(random_tokens(20)))


def test_models_converted_in_part(tmp_path: Path) -> None:
    """Some layers are DBA, others still ordinary attention, each with its own cache."""
    plain = {**GQA, "qkv_bias": True, "o_bias": True}
    mine = make_run(tmp_path / "run", model_of({**DBA, **BIASES}, plain))
    export(tmp_path / "run", tmp_path / "out")
    other = theirs(tmp_path / "out")
    tokens = random_tokens(30)
    with torch.no_grad():
        torch.testing.assert_close(other(tokens).logits, mine(tokens), rtol=0, atol=1e-5)
    found = continued(other, tokens[:, :4], 20)
    assert torch.equal(found.sequences, generate(mine, tokens[:, :4], 20))
    stored = sum(tensor.numel() for layer in found.past_key_values.layers for tensor in (layer.keys, layer.values))
    assert stored == 2 * 23 * (24 + 32 + 24)
    checkpoint = find_loader(tmp_path / "out")
    again = build(lower(structure_model(checkpoint.model())))
    load_weights(again, checkpoint)
    assert torch.equal(again(tokens), mine(tokens))


@pytest.mark.parametrize("name", ["shared latents", *OF_OPTIONS, *JOINTS])
def test_padding_on_the_left_changes_nothing(tmp_path: Path, name: str) -> None:
    mine = make_run(tmp_path / "run", model_of(ATTENTIONS[name]))
    export(tmp_path / "run", tmp_path / "out")
    other = theirs(tmp_path / "out")
    short, long = random_tokens(5, batch=1), random_tokens(9, batch=1, seed=2)
    padded = torch.cat([torch.cat([torch.zeros(1, 4, dtype=torch.int64), short], dim=1), long])
    mask = torch.ones_like(padded)
    mask[0, :4] = 0
    both = continued(other, padded, 12, attention_mask=mask).sequences
    assert torch.equal(both[0, 9:], continued(other, short, 12).sequences[0, 5:])
    assert torch.equal(both[1, 9:], continued(other, long, 12).sequences[0, 9:])
    assert [both[0, 4:].tolist(), both[1].tolist()] == generate_each(mine, [short[0].tolist(), long[0].tolist()], 12)


@pytest.mark.parametrize("name", ["offsets", *OF_OPTIONS, *JOINTS])
def test_several_tokens_at_a_time_behind_a_cache(tmp_path: Path, name: str) -> None:
    mine = make_run(tmp_path / "run", model_of(ATTENTIONS[name]))
    export(tmp_path / "run", tmp_path / "out")
    other = theirs(tmp_path / "out")
    tokens = random_tokens(33)
    with torch.no_grad():
        expected = mine(tokens)
        past, parts = None, []
        for part in tokens.split([7, 1, 5, 8, 1, 11], dim=1):  # the last part is longer than the window
            output = other(part, past_key_values=past, use_cache=True)
            past = output.past_key_values
            parts.append(output.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=0, atol=1e-5)
    assert bytes_of(past) == 2 * plan_model(mine.graph, context=33).cached_bytes(33)


@pytest.mark.parametrize("name", ["shared latents", "all with a dynamic gate", "joint latent"])
def test_beams_reorder_the_cache(tmp_path: Path, name: str) -> None:
    make_run(tmp_path / "run", model_of(ATTENTIONS[name]))
    export(tmp_path / "run", tmp_path / "out")
    other = theirs(tmp_path / "out")
    prompt = random_tokens(6)
    with_cache = continued(other, prompt, 12, num_beams=3).sequences
    assert torch.equal(with_cache, continued(other, prompt, 12, num_beams=3, use_cache=False).sequences)


@pytest.mark.parametrize("name", ["shared latents", "window", "all with a static gate", "joint latent, many options"])
@pytest.mark.parametrize("guess", ["prompt", "assistant"])
def test_rejected_guesses_are_taken_back(tmp_path: Path, name: str, guess: str) -> None:
    """Tokens that are guessed run several at a time, past the window, and leave the cache if they are wrong."""
    cache_utils = importlib.import_module("transformers.cache_utils")
    if not hasattr(cache_utils.DynamicSlidingWindowLayer, "activate_past_recording"):
        pytest.skip("this version of transformers takes nothing back from a window, whatever the model")
    mine = make_run(tmp_path / "run", model_of(ATTENTIONS[name]))
    export(tmp_path / "run", tmp_path / "out")
    prompt = random_tokens(6, batch=1).repeat(1, 3)
    other = theirs(tmp_path / "out")
    guesses: dict[str, Any] = {"prompt_lookup_num_tokens": 4}
    if guess == "assistant":
        assistant = theirs(tmp_path / "out").requires_grad_(False)
        assistant.model.norm.weight[::2] *= 0.2  # right now and then
        guesses = {"assistant_model": assistant}
    found = continued(other, prompt, 30, **guesses)
    assert torch.equal(found.sequences, generate(mine, prompt, 30))


def test_windows_differ_by_layer(tmp_path: Path) -> None:
    mine = make_run(tmp_path / "run", model_of({**SIX, "window": 4}, {**SIX, "window": None, "null": True}))
    export(tmp_path / "run", tmp_path / "out")
    other = theirs(tmp_path / "out")
    cache = importlib.import_module("transformers").DynamicCache()  # one that knows nothing of the model
    tokens = random_tokens(30)
    with torch.no_grad():
        torch.testing.assert_close(other(tokens).logits, mine(tokens), rtol=0, atol=1e-5)
    found = continued(other, tokens[:, :6], 20, past_key_values=cache)
    assert torch.equal(found.sequences, generate(mine, tokens[:, :6], 20))
    assert bytes_of(cache) == 2 * plan_model(mine.graph, context=25).cached_bytes(25) == 2 * 4 * 24 * (4 + 25 + 4)


def test_positions_far_out(tmp_path: Path) -> None:
    mine = make_run(tmp_path / "run", model_of({**DBA, "rope": LLAMA3}))
    export(tmp_path / "run", tmp_path / "out")
    tokens, positions = random_tokens(9), torch.arange(5000, 5009)
    with torch.no_grad():
        found = theirs(tmp_path / "out")(tokens, position_ids=positions[None].expand(2, -1)).logits
        torch.testing.assert_close(found, mine(tokens, Frame(positions=positions)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["shared latents", "all with a dynamic gate", "joint latent"])
def test_bfloat16(tmp_path: Path, name: str) -> None:
    mine = make_run(tmp_path / "run", model_of(ATTENTIONS[name]))
    export(tmp_path / "run", tmp_path / "out", dtype="bfloat16")
    other = theirs(tmp_path / "out", dtype="auto")
    assert other.dtype == torch.bfloat16
    assert other.model.layers[0].self_attn.pairs.dtype == torch.int64
    tokens = random_tokens(12)
    with torch.no_grad():
        expected = mine.to(torch.bfloat16)(tokens)
        assert (other(tokens).logits - expected).abs().max() <= 0.1 * expected.abs().max()


@pytest.mark.parametrize("name", ["offsets", "all with a static gate", "all with a dynamic gate", *JOINTS])
def test_it_trains_in_transformers(tmp_path: Path, name: str) -> None:
    make_run(tmp_path / "run", model_of(ATTENTIONS[name]))
    export(tmp_path / "run", tmp_path / "out")
    other = theirs(tmp_path / "out").train()
    tokens = random_tokens(12)
    loss = other(tokens, labels=tokens).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert all(parameter.grad is not None for parameter in other.parameters())


def test_the_folder_needs_nothing_of_caramba(tmp_path: Path) -> None:
    make_run(tmp_path / "run", model_of(DBA))
    done = export(tmp_path / "run", tmp_path / "out")
    assert set(done.files) == {"README.md", "config.json", "model.safetensors", "modeling_caramba_dba.py"}
    source = (tmp_path / "out" / "modeling_caramba_dba.py").read_text()
    imported = {line.split()[1].split(".")[0] for line in source.splitlines() if line.startswith(("import ", "from "))}
    assert imported == {"__future__", "typing", "torch", "transformers"}
    assert "trust_remote_code=True" in (tmp_path / "out" / "README.md").read_text()


# ------------------------------------------------------------------------------------------------ what cannot be


def test_every_field_of_the_attentions_is_expressed() -> None:
    """An option that is added to an attention must be added to the export, or is refused where it is set."""
    norms = {"qk_norm_eps", "qk_norm_span", "qk_norm_offset"}
    fields = {field.name for field in attrs.fields(GroupedQueryAttention)}
    assert fields - norms == exporter._EXPRESSED["gqa"] - norms
    fields = {field.name for field in attrs.fields(DecoupledBottleneckAttention)}
    assert fields - {"groups"} - norms == exporter._EXPRESSED["dba"]
    model = model_of({**DBA, "qk_norm_eps": 1e-5}, DBA)
    with pytest.raises(exporter.ExportError, match=r"blocks\.0\.attention has qk_norm_eps: 1e-05, which .* does not"):
        exporter.DBAExporter.describe("caramba", Original(graph=lower(structure_model(model))))


def test_options_that_the_modeling_file_does_not_know_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(exporter._EXPRESSED, "dba", exporter._EXPRESSED["dba"] - {"window"})
    model = model_of({**DBA, "window": 5}, DBA)
    with pytest.raises(exporter.ExportError, match=r"blocks\.0\.attention has window: 5"):
        exporter.DBAExporter.describe("caramba", Original(graph=lower(structure_model(model))))


@pytest.mark.parametrize(
    ("attention", "reason"),
    [
        (GQA, "none of its attentions is dba"),
        ({**GQA, "window": 4}, "none of its attentions is dba|window"),
    ],
)
def test_attentions_that_are_refused(tmp_path: Path, attention: dict[str, Any], reason: str) -> None:
    with pytest.raises(exporter.ExportError, match=reason):
        exporter.DBAExporter.describe("caramba", Original(graph=lower(structure_model(model_of(attention)))))


def test_a_joint_latent_is_no_ordinary_llama() -> None:
    model = model_of({**DBA, "sem_dim": 0, "latent": "joint"})
    with pytest.raises(exporter.ExportError, match="DeepSeek's normalizes its latent") as refused:
        exporter.DBAExporter.describe("llama", Original(graph=lower(structure_model(model))))
    assert refused.value.hint is None  # layout: servable is no way out


def test_foreign_descriptions_build_nothing(tmp_path: Path) -> None:
    """The model in ``config.json`` is read as a manifest's: unknown components, or a wrong map of keys, are errors."""
    make_run(tmp_path / "run", model_of(DBA))
    export(tmp_path / "run", tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "caramba": {**config["caramba"], "keys": {"norm.weight": 3}}}))
    with pytest.raises(InputError, match=r"caramba\.keys is no mapping"):
        find_loader(tmp_path / "out").layout()
    path.write_text(json.dumps({**config, "caramba": {"keys": {}, "model": [1]}}))
    with pytest.raises(InputError, match=r"caramba\.model is no mapping"):
        find_loader(tmp_path / "out").model()
    path.write_text(json.dumps({**config, "caramba": {**config["caramba"], "keys": {}}}))
    checkpoint = find_loader(tmp_path / "out")
    with pytest.raises(InputError, match="does not fit the model"):
        load_weights(build(lower(structure_model(checkpoint.model()))), checkpoint)
