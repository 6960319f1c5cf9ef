"""An exported model in other people's hands: it takes what transformers' own Llama takes, and gives the same.

The Llama of :func:`dba_exports.pair_of` computes the same function, so that it is the reference for everything.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from caramba_plugins_llama.export import export
from caramba_plugins_standard.generation import generate
from dba_exports import (
    DBA,
    GQA,
    VOCABULARY,
    continued,
    make_run,
    model_of,
    pair_of,
    random_tokens,
    theirs,
)
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("remote_code")

TOKENS = random_tokens(12)
PACKED = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 0, 1, 2]])
LEFT = torch.ones_like(TOKENS).index_fill(1, torch.arange(4), 0)
RIGHT = torch.ones_like(TOKENS).index_fill(1, torch.arange(8, 12), 0)
LEFT[1] = RIGHT[1] = 1  # rows of unequal lengths
HOLES = torch.ones_like(TOKENS).index_fill(1, torch.tensor([3, 4]), 0)
CAUSAL = torch.ones(12, 12, dtype=torch.bool).tril()
PREFIX = (CAUSAL | (torch.arange(12) < 5)).expand(2, 1, -1, -1)
"""The first five tokens see each other."""
TERM = torch.zeros(2, 1, 12, 12).masked_fill(~PREFIX, torch.finfo(torch.float32).min)

PASSES: dict[str, dict[str, Any]] = {
    "plain": {},
    "no cache": {"use_cache": False},
    "padded on the left": {"attention_mask": LEFT},
    "padded on the right": {"attention_mask": RIGHT},
    "holes": {"attention_mask": HOLES},
    "a mask that is too long": {"attention_mask": torch.cat([RIGHT, RIGHT], dim=1)},
    "a mask of booleans": {"attention_mask": RIGHT.bool()},
    "packed": {"position_ids": PACKED, "use_cache": False},
    "packed in every row": {"position_ids": PACKED.expand(2, -1), "use_cache": False},
    "packed, the rest padded": {"position_ids": PACKED, "attention_mask": RIGHT, "use_cache": False},
    "positions that start late": {"position_ids": torch.arange(30, 42)[None]},
    "a term of the scores": {"attention_mask": TERM},
    "a term for every head": {"attention_mask": TERM.expand(-1, 4, -1, -1)},
    "the last logits": {"logits_to_keep": 3},
    "some logits": {"logits_to_keep": torch.tensor([1, 5])},
}


def compare(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_pass_of_a_native_llama(tmp_path: Path, implementation: str) -> None:
    student, llama = pair_of(tmp_path, attn_implementation=implementation)
    assert student.config._attn_implementation == implementation
    with torch.no_grad():
        for name, options in PASSES.items():
            found, expected = student(TOKENS, **options), llama(TOKENS, **options)
            seen = options.get("attention_mask", LEFT.new_ones(2, 12))
            seen = seen[:, :12].bool() if seen.dim() == 2 and "logits_to_keep" not in options else ...
            assert found.logits.shape == expected.logits.shape, name
            assert (found.logits[seen] - expected.logits[seen]).abs().max() < 1e-5, name
            assert type(found.past_key_values) is type(expected.past_key_values), name
        for name in ("input_ids", "inputs_embeds"):
            given = TOKENS if name == "input_ids" else student.get_input_embeddings()(TOKENS)
            whole = {name: given, "output_hidden_states": True}
            found, expected = student(**whole), llama(**whole)
            compare(found.logits, expected.logits)
            compare(torch.stack(found.hidden_states), torch.stack(expected.hidden_states))
            for which in (2, [0, -1]):
                some = [model(**{**whole, "output_hidden_states": which}).hidden_states for model in (student, llama)]
                for one, other in zip(*some, strict=True):
                    assert (one is None) is (other is None)
                    if other is not None:
                        compare(one, other)
            found, expected = student(**whole, return_dict=False), llama(**whole, return_dict=False)
            assert len(found) == len(expected)
            compare(found[0], expected[0])


def test_masks_of_booleans_in_four_axes(tmp_path: Path) -> None:
    """As a native Llama takes them with sdpa; its eager attention adds True to the scores as 1."""
    student, llama = pair_of(tmp_path)
    with torch.no_grad():
        expected = llama(TOKENS, attention_mask=PREFIX).logits
        for implementation in ("sdpa", "eager"):
            student.set_attn_implementation(implementation)
            compare(student(TOKENS, attention_mask=PREFIX).logits, expected)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_attentions(tmp_path: Path, implementation: str) -> None:
    """Of both kinds of layer, in the first pass and behind a cache; a native Llama gives them with eager alone."""
    student, llama = pair_of(tmp_path, attn_implementation="eager")
    student.set_attn_implementation(implementation)
    with torch.no_grad():
        found, expected = (model(TOKENS, attention_mask=RIGHT, output_attentions=True) for model in (student, llama))
        compare(torch.stack(found.attentions)[..., :8, :], torch.stack(expected.attentions)[..., :8, :])
        for options in ({"cache_implementation": "static"}, {}):
            options |= {"output_attentions": True, "attention_mask": LEFT}
            found, expected = (continued(model, TOKENS, 4, **options) for model in (student, llama))
            assert torch.equal(found.sequences, expected.sequences)
            for one, other in zip(found.attentions[1:], expected.attentions[1:], strict=True):
                compare(torch.stack(one)[..., :12], torch.stack(other)[..., :12])


def test_packed_sequences_are_as_each_alone(tmp_path: Path) -> None:
    """Also with a new cache, where transformers' sdpa mixes them and its flash attention does not."""
    make_run(tmp_path / "run", model_of({**DBA, "n_heads": 6, "null": True, "window": 3}, GQA))
    export(tmp_path / "run", tmp_path / "out")
    student = theirs(tmp_path / "out")
    with torch.no_grad():
        alone = [student(part).logits for part in TOKENS[:1].split([4, 5, 3], dim=1)]
        for options in ({}, {"use_cache": False}):
            compare(student(TOKENS[:1], position_ids=PACKED, **options).logits, torch.cat(alone, dim=1))


def test_masks_of_another_shape_are_refused(tmp_path: Path) -> None:
    student, _ = pair_of(tmp_path)
    for mask, axes in ((PREFIX[:, 0], "3 axes of torch.bool"), (PREFIX.long(), "4 axes of torch.int64")):
        with pytest.raises(ValueError, match=rf"attention_mask has {axes}; expected \[batch, seen\]"):
            student(TOKENS, attention_mask=mask)
    with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
        student(TOKENS, inputs_embeds=student.get_input_embeddings()(TOKENS))


@pytest.mark.parametrize("implementation", ["flash_attention_2", "flex_attention"])
def test_other_implementations_of_attention_are_refused(tmp_path: Path, implementation: str) -> None:
    student, _ = pair_of(tmp_path)
    with pytest.raises(ValueError, match=r"does not support (Flash Attention|an attention implementation)"):
        student.set_attn_implementation(implementation)


# ------------------------------------------------------------------------------------------------ caches

CONTINUATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no cache": {"use_cache": False},
    "static": {"cache_implementation": "static"},
    "sliding window": {"cache_implementation": "sliding_window"},
    "hybrid": {"cache_implementation": "hybrid"},
    "beams": {"num_beams": 3},
    "beams, static": {"num_beams": 3, "cache_implementation": "static"},
    "in parts": {"prefill_chunk_size": 5},
    "in parts, static": {"prefill_chunk_size": 5, "cache_implementation": "static"},
}


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_continuation_of_a_native_llama(tmp_path: Path, implementation: str) -> None:
    student, llama = pair_of(tmp_path, attn_implementation=implementation)
    for name, options in CONTINUATIONS.items():
        for mask in (torch.ones_like(LEFT), LEFT):
            found, expected = (
                continued(model, TOKENS, 20, attention_mask=mask, **options) for model in (student, llama)
            )
            assert torch.equal(found.sequences, expected.sequences), name
    for options in ({"prompt_lookup_num_tokens": 3}, {"assistant_model": student}):
        found = continued(student, TOKENS[:1], 20, **options).sequences
        assert torch.equal(found, continued(llama, TOKENS[:1], 20).sequences)
    embedded = {"inputs_embeds": llama.get_input_embeddings()(TOKENS)}
    assert torch.equal(
        continued(student, None, 9, **embedded).sequences, continued(llama, None, 9, **embedded).sequences
    )


@pytest.mark.parametrize("four_axes", [False, True])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_a_cache_by_hand(tmp_path: Path, kind: str, four_axes: bool) -> None:
    """Several tokens, one, and several more, with and without a mask of four axes."""
    transformers = importlib.import_module("transformers")
    student, llama = pair_of(tmp_path)
    outputs = []
    for model in (student, llama):
        if kind == "dynamic":
            cache, room = transformers.DynamicCache(config=model.config), 0
        else:
            cache, room = transformers.StaticCache(config=model.config, max_cache_len=20), 8
        parts = []
        for first, last in ((0, 5), (5, 6), (6, 12)):
            seen = torch.nn.functional.pad(PREFIX[:, :, first:last, : 12 if kind == "static" else last], (0, room))
            options = {"attention_mask": seen} if four_axes else {}
            with torch.no_grad():
                parts.append(model(TOKENS[:, first:last], past_key_values=cache, **options).logits)
        outputs.append(torch.cat(parts, dim=1))
    compare(*outputs)


@pytest.mark.parametrize("implementation", ["static", "sliding_window", None])
def test_static_caches_keep_windows(tmp_path: Path, implementation: str | None) -> None:
    """A static cache has room for all tokens; a layer with a window still sees its last ones alone."""
    mine = make_run(tmp_path / "run", model_of({**DBA, "window": 4}, {**GQA}))
    export(tmp_path / "run", tmp_path / "out")
    found = continued(theirs(tmp_path / "out"), TOKENS, 20, cache_implementation=implementation)
    assert torch.equal(found.sequences, generate(mine, TOKENS, 20))


def test_caches_that_were_made_for_another_attention(tmp_path: Path) -> None:
    student, llama = pair_of(tmp_path)
    with pytest.raises(ValueError, match=r"layer 0 holds keys of 2 heads and width 8, and this model's have 1 and 16"):
        student(TOKENS[:, -1:], past_key_values=llama(TOKENS).past_key_values)


def test_paged_caches_are_refused(tmp_path: Path) -> None:
    student, _ = pair_of(tmp_path)
    with pytest.raises(NotImplementedError, match="does not support continuous batching"):
        student.generate_batch(inputs=[[1, 2, 3]])


def groups_of_64() -> Any:
    """A quantized cache that takes whole groups alone, as those of quanto and hqq do, and loses next to nothing."""
    transformers = importlib.import_module("transformers")

    class Layer(transformers.cache_utils.QuantizedLayer):
        def _quantize(self, tensor: Tensor, axis: int) -> Tensor:
            assert tensor.shape[-1] % self.q_group_size == 0
            return (tensor * 2.0**20).round()

        def _dequantize(self, tensor: Tensor) -> Tensor:
            return tensor / 2.0**20

    return transformers.cache_utils.Cache(layers=[Layer(residual_length=3) for _ in range(3)])


def test_quantized_caches(tmp_path: Path) -> None:
    transformers = importlib.import_module("transformers")
    student, _ = pair_of(tmp_path)
    with torch.no_grad():
        expected = student(TOKENS).logits
        for cache, most in (
            (groups_of_64(), 1e-4),
            (transformers.QuantizedCache("fp8", student.config), 0.2 * expected.abs().max()),
        ):
            parts = [student(part, past_key_values=cache).logits for part in TOKENS.split([5, *[1] * 7], dim=1)]
            assert (torch.cat(parts, dim=1) - expected).abs().max() < most


def test_quantized_caches_of_quanto(tmp_path: Path) -> None:
    """With default settings, whose groups of 64 hold for every width."""
    pytest.importorskip("optimum.quanto")
    student, _ = pair_of(tmp_path)
    assert continued(student, TOKENS, 9, cache_implementation="quantized").sequences.shape == (2, 21)


# ------------------------------------------------------------------------------------------------ modules in place


class Int8Linear(nn.Module):
    """As quantizers put them in the place of a linear: no weight in floating point, and none under that name."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("rows", (linear.weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """``[*, D] -> [*, N]``."""
        return nn.functional.linear(x, self.rows.to(x.dtype) * self.scale.to(x.dtype), self.bias)


EVERYTHING = {
    "n_heads": 6,
    "null": True,
    "window": 7,
    "gate": "dynamic",
    "temperature": True,
    **{f"{name}_bias": True for name in "qkvo"},
}


def replaced(model: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> None:
    """Every linear of a model, but for its head."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and "lm_head" not in name:
            model.set_submodule(name, make(module))


@pytest.mark.parametrize("attention", [DBA, {**DBA, **EVERYTHING}], ids=["plain", "everything"])
def test_linears_may_be_replaced(tmp_path: Path, attention: dict[str, Any]) -> None:
    """Token by token and in one pass, modules in the place of linears act alike: also ones that add an offset."""

    class Shifted(Int8Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 0.25

    make_run(tmp_path / "run", model_of(attention, GQA))
    export(tmp_path / "run", tmp_path / "out")
    for kind in (Int8Linear, Shifted):
        student = theirs(tmp_path / "out")
        with torch.no_grad():
            before = student(TOKENS).logits
            replaced(student, kind)
            expected = student(TOKENS).logits
            assert (expected - before).abs().max() > 1e-3
            cache = importlib.import_module("transformers").DynamicCache()
            parts = [student(part, past_key_values=cache).logits for part in TOKENS.split(1, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["plain", "everything"])
def test_lora_acts_in_decoding(tmp_path: Path, name: str) -> None:
    """On all linears, not merged: token by token as in one pass, and as merged into the weights."""
    peft = pytest.importorskip("peft")
    make_run(tmp_path / "run", model_of({**DBA, **(EVERYTHING if name == "everything" else {})}, GQA))
    export(tmp_path / "run", tmp_path / "out")
    settings = peft.LoraConfig(target_modules="all-linear", r=4, init_lora_weights=False, task_type="CAUSAL_LM")
    model = peft.get_peft_model(theirs(tmp_path / "out"), settings).eval()
    adapted = {key.rpartition(".")[2] for key in model.targeted_module_names}
    assert {"v_up_proj", "k_sem_proj", "q_geo_proj", "q_proj", "down_proj"} <= adapted
    with torch.no_grad():
        expected = model(input_ids=TOKENS).logits
        cache = importlib.import_module("transformers").DynamicCache()
        parts = [model(input_ids=part, past_key_values=cache).logits for part in TOKENS.split([3, *[1] * 9], dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=0, atol=2e-5)
        with model.disable_adapter():
            assert (model(input_ids=TOKENS).logits - expected).abs().max() > 0.1
        sequences = continued(model, TOKENS, 12).sequences
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(TOKENS).logits, expected, rtol=0, atol=2e-5)
    assert torch.equal(continued(merged, TOKENS, 12).sequences, sequences)


def test_prompts_and_prefixes_of_peft(tmp_path: Path) -> None:
    """Learned prompts come as embeddings and work; learned keys and values have another attention's shape."""
    peft = pytest.importorskip("peft")
    sequences = []
    for model in pair_of(tmp_path):
        settings = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
        prompted = peft.get_peft_model(model, settings).eval()
        prompted.prompt_encoder.default.embedding.weight.data = model.get_input_embeddings().weight[[3, 1, 4]]
        sequences.append(continued(prompted, TOKENS, 8, attention_mask=LEFT).sequences)
    assert torch.equal(*sequences)
    prefixes = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(theirs(tmp_path / "out"), prefixes)
    with pytest.raises(
        ValueError, match=r"a cache, or a prefix \(prefix tuning\), that was made for another attention"
    ):
        model(input_ids=TOKENS)


def test_resized_reloaded_and_cast(tmp_path: Path) -> None:
    transformers = importlib.import_module("transformers")
    student, llama = pair_of(tmp_path)
    more = torch.tensor([[VOCABULARY + 2, 3, 4]])
    for model in (student, llama):
        model.resize_token_embeddings(VOCABULARY + 5, mean_resizing=False)
        model.get_input_embeddings().weight.data[VOCABULARY:] = 0.5
        model.save_pretrained(tmp_path / type(model).__name__)
    with torch.no_grad():
        compare(student(more).logits, llama(more).logits)
        again = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "CarambaDBAForCausalLM", trust_remote_code=True
        )
        assert torch.equal(again(more).logits, student(more).logits)
        body = transformers.AutoModel.from_pretrained(tmp_path / "CarambaDBAForCausalLM", trust_remote_code=True)
        same = student(more, output_hidden_states=True).hidden_states[-1]
        compare(body(more).last_hidden_state, same)
        for dtype in (torch.float16, torch.bfloat16, torch.float64):
            cast = theirs(tmp_path / "CarambaDBAForCausalLM", dtype=dtype)
            assert cast.dtype == cast(more).logits.dtype == dtype
            expected = copy.deepcopy(llama).to(dtype)(more).logits
            most = 1e-5 if dtype == torch.float64 else 0.05 * expected.abs().max()
            assert (cast(more).logits - expected).abs().max() <= most


# ------------------------------------------------------------------------------------------------ training

SENTENCES = [random_tokens(count, batch=1, seed=count)[0] for count in (5, 11, 7, 12, 3, 9, 8, 6)]


def gradients(student: Any, llama: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Those of the weights that both have, and of the Llama's values what its factors get."""
    found = {key: value.grad for key, value in student.named_parameters()}
    expected = {}
    for key, value in llama.named_parameters():
        other = key.replace("_proj", "_geo_proj") if f"{key.replace('_proj', '_geo_proj')}" in found else key
        expected[other] = value.grad
    up = [key for key in found if "v_up_proj" in key]
    for key in up:
        latent = key.replace("v_up_proj", "v_proj")
        weights = dict(student.named_parameters())
        whole = expected[latent]
        expected[key], expected[latent] = whole @ weights[latent].T, weights[key].T @ whole
    return found, expected


@pytest.mark.parametrize(
    "options",
    [{}, {"num_items_in_batch": 50}, {"shift_labels": TOKENS.masked_fill(RIGHT == 0, -100)}],
    ids=["labels", "items of all micro-batches", "shifted labels"],
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_losses_and_gradients_of_a_native_llama(tmp_path: Path, options: dict[str, Any], checkpointing: bool) -> None:
    student, llama = pair_of(tmp_path)
    labels = TOKENS.masked_fill(RIGHT == 0, -100)
    losses = []
    for model in (student, llama):
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        loss = model(TOKENS, attention_mask=RIGHT, labels=labels, **options).loss
        loss.backward()
        losses.append(loss.detach())
    compare(*losses)
    found, expected = gradients(student, llama)
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=1e-5, msg=key)


def by_hand(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | None = None) -> Tensor:
    """A loss function of the user's own, as Trainer calls it."""
    logits = outputs.logits[:, :-1].flatten(0, 1)
    return nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum") / num_items_in_batch


@pytest.mark.parametrize(
    ("trainer_options", "settings"),
    [
        ({}, {}),
        ({}, {"label_smoothing_factor": 0.2}),
        ({"compute_loss_func": by_hand}, {}),
        ({}, {"gradient_checkpointing": True}),
        ({"data_collator": "flattening"}, {}),
    ],
    ids=["plain", "label smoothing", "loss function", "checkpointing", "packed"],
)
def test_trainer_with_accumulated_gradients(
    tmp_path: Path, trainer_options: dict[str, Any], settings: dict[str, Any]
) -> None:
    """Four micro-batches of unequal lengths a step: every loss and norm of gradients is the Llama's.

    Values, which the two models have in different factors, do not train.
    """
    pytest.importorskip("accelerate")
    transformers = importlib.import_module("transformers")
    records = []
    for model in pair_of(tmp_path):
        for key, parameter in model.named_parameters():
            parameter.requires_grad_(".v_" not in key)
        options = dict(trainer_options)
        if options.get("data_collator") == "flattening":
            options["data_collator"] = transformers.DataCollatorWithFlattening()
        else:
            options["data_collator"] = padded
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / "trained"),
            per_device_train_batch_size=1 if "data_collator" not in trainer_options else 2,
            gradient_accumulation_steps=4,
            num_train_epochs=1,
            logging_steps=1,
            learning_rate=1e-3,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            seed=3,
            **settings,
        )
        rows = [{"input_ids": ids.tolist(), "labels": ids.tolist()} for ids in SENTENCES]
        trainer = transformers.Trainer(model=model, args=arguments, train_dataset=rows, **options)
        trainer.train()
        history = [entry[key] for entry in trainer.state.log_history for key in ("loss", "grad_norm") if key in entry]
        assert len(history) == (2 if "flattening" in str(trainer_options) else 4)
        records.append([*history, trainer.evaluate(rows)["eval_loss"]])
    torch.testing.assert_close(*map(torch.tensor, records), rtol=1e-4, atol=1e-4)


def padded(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Rows of one length, padding marked and without labels."""
    longest = max(len(row["input_ids"]) for row in rows)

    def stacked(name: str, value: int) -> Tensor:
        return torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in rows])

    ids = stacked("input_ids", 0)
    lengths = torch.tensor([[len(row["input_ids"])] for row in rows])
    return {
        "input_ids": ids,
        "labels": stacked("labels", -100),
        "attention_mask": (torch.arange(longest) < lengths).long(),
    }


# ------------------------------------------------------------------------------------------------ lm-eval

DOCUMENTS = ["the lazy fox jumps over a small dog", "a brown language model", "quick brown " * 30]
QUESTIONS = [
    ("the quick brown", ["fox", "language", "lazy dog"], 0),
    ("a small", ["model of a small", "the", "dog"], 1),
    ("over the", ["lazy dog", "quick"], 0),
    ("jumps", ["over the lazy dog", "a"], 0),
]


def tasks_of(folder: Path) -> dict[str, Any]:
    """A task of documents and one of questions, from files."""
    data = {
        "documents": [{"text": text} for text in DOCUMENTS],
        "questions": [
            {"question": question, "choices": choices, "gold": gold} for question, choices, gold in QUESTIONS
        ],
    }
    kinds: dict[str, dict[str, Any]] = {
        "documents": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
        },
        "questions": {
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "choices",
            "doc_to_target": "gold",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        },
    }
    tasks = {}
    for name, kind in kinds.items():
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in data[name]))
        files = {"data_files": {"test": str(folder / f"{name}.jsonl")}, "cache_dir": str(folder / "cache")}
        config = {"task": name, "dataset_path": "json", "dataset_kwargs": files, "test_split": "test", **kind}
        tasks[name] = importlib.import_module("lm_eval.api.task").ConfigurableTask(config=config)
    return tasks


def write_tokenizer(folder: Path) -> None:
    """Words and letters, as many as the models have rows for."""
    tokenizers, transformers = importlib.import_module("tokenizers"), importlib.import_module("transformers")
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="?"))
    backend.pre_tokenizer, backend.decoder = tokenizers.pre_tokenizers.Metaspace(), tokenizers.decoders.Metaspace()
    special = ["<|endoftext|>", "?"]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    backend.train_from_iterator([*DOCUMENTS, "language of model"] * 3, trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=special[0], unk_token=special[1])
    fast.save_pretrained(folder)


def test_the_snippet_of_the_card_works_as_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tokenizer, and without a question about the code of the folder, which the card tells of."""
    _, llama = pair_of(tmp_path)
    llama.save_pretrained(tmp_path / "llama")
    write_tokenizer(tmp_path / "llama")
    export(tmp_path / "run", tmp_path / "student", origin=str(tmp_path / "llama"))
    card = (tmp_path / "student" / "README.md").read_text()
    digest = hashlib.sha256((tmp_path / "student" / "modeling_caramba_dba.py").read_bytes()).hexdigest()
    assert f"`trust_remote_code=True` runs `modeling_caramba_dba.py` (SHA-256 {digest}), which lies in" in card
    assert 'tags: ["caramba", "custom_code"]' in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code is not None
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks whether code may run"))
    names: dict[str, Any] = {}
    exec(code[1], names)
    assert type(names["model"]).__name__ == "CarambaDBAForCausalLM"
    assert names["ids"].shape[0] == 1


def test_a_folder_of_dba_is_exported_again(tmp_path: Path) -> None:
    """A checkpoint as it is may be a student: its code goes with it."""
    student, _ = pair_of(tmp_path)
    done = export(tmp_path / "out", tmp_path / "again", dtype="float16")
    assert (done.exporter, done.dtype) == ("dba", "float16")
    assert "modeling_caramba_dba.py" in done.files
    again = theirs(tmp_path / "again", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(again(TOKENS).logits, student(TOKENS).logits, rtol=0, atol=0.02)


def test_lm_eval(tmp_path: Path) -> None:
    """Rolling likelihoods and multiple choice, from the folder as it is: figures of the native Llama."""
    harness = pytest.importorskip("lm_eval.models.huggingface")
    evaluate = importlib.import_module("lm_eval.evaluator").evaluate
    _, llama = pair_of(tmp_path)
    llama.save_pretrained(tmp_path / "llama")
    write_tokenizer(tmp_path / "llama")
    export(tmp_path / "run", tmp_path / "student", origin=str(tmp_path / "llama"))
    results, likelihoods = [], []
    for folder in ("student", "llama"):
        path = str(tmp_path / folder)
        model = harness.HFLM(pretrained=path, trust_remote_code=True, batch_size=2, max_length=32, device="cpu")
        found = evaluate(lm=model, task_dict=tasks_of(tmp_path), bootstrap_iters=0)
        figures = (item for task in found["results"].values() for item in task.items())
        results.append({name: value for name, value in figures if isinstance(value, float)})
        answers = [sample["filtered_resps"] for task in ("documents", "questions") for sample in found["samples"][task]]
        likelihoods.append([torch.tensor(answer, dtype=torch.float64) for answer in answers])
    assert results[0].keys() == results[1].keys() >= {"byte_perplexity,none", "acc,none"}
    assert results[0] == {name: pytest.approx(value, rel=1e-5) for name, value in results[1].items()}
    torch.testing.assert_close(*likelihoods, rtol=1e-5, atol=1e-4)
