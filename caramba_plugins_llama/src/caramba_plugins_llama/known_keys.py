"""Which keys of a checkpoint's description are known, as data: read, without effect on logits, or read at one value.

Any other key is refused by name, since a reader that skips it may read another model than the file's.  The tables of
``docs/checkpoints.md`` are made from this module and :mod:`caramba_plugins_llama.families`.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, Final

import attrs

__all__ = ["CONFIG", "GENERATION", "GGUF", "GGUF_NAMES", "GGUF_OUTSIDE", "ROPE_TYPES", "TOKENIZER", "KnownKeys"]


@attrs.frozen(kw_only=True)
class KnownKeys:
    """What is done with the keys of one kind of description.

    ``read`` decide what is built; ``ignored`` (patterns, ``*`` for anything) cannot change logits; ``fixed`` are read
    at the values listed alone, with the reason why others are refused.
    """

    read: tuple[str, ...]
    ignored: tuple[str, ...] = ()
    fixed: Mapping[str, tuple[tuple[Any, ...], str]] = attrs.field(factory=dict)

    def problems(self, values: Mapping[str, Any]) -> list[str]:
        """One sentence for each key that is unknown, or has a value that cannot be expressed; ``null`` says nothing."""
        found = []
        for key, value in values.items():
            if value is None or key in self.read:
                continue
            shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
            if key in self.fixed:
                if value not in self.fixed[key][0]:
                    found.append(f"{key} is {shown}: {self.fixed[key][1]}")
            elif not any(fnmatchcase(key, pattern) for pattern in self.ignored):
                found.append(f"{key} is {shown}: this key is not known, and may change the model")
        return found


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# ------------------------------------------------------------------------------------------------ Hugging Face folders

GENERATION: Final = KnownKeys(
    read=("bos_token_id", "eos_token_id", "pad_token_id"),
    ignored=_words(
        """_from_model_config transformers_version use_cache max_length max_new_tokens min_length min_new_tokens
        early_stopping max_time stop_strings do_sample num_beams num_beam_groups use_mtp penalty_alpha dola_layers
        cache_implementation cache_config max_cache_len return_legacy_cache prefill_chunk_size temperature top_k top_p
        min_p top_h top_n_sigma typical_p epsilon_cutoff eta_cutoff diversity_penalty repetition_penalty
        encoder_repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
        force_words_ids renormalize_logits constraints forced_bos_token_id forced_eos_token_id forced_decoder_ids
        remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens sequence_bias
        token_healing guidance_scale low_memory watermarking_config num_return_sequences output_attentions
        output_hidden_states output_scores output_logits return_dict_in_generate decoder_start_token_id is_assistant
        num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold prompt_lookup_num_tokens
        max_matching_ngram_size assistant_early_exit assistant_lookbehind target_lookbehind compile_config
        disable_compile assistant_ensemble_weight speculation_type continuous_batching_config trust_remote_code
        chat_format max_window_size"""
    ),
)
"""``generation_config.json``: what happens behind the logits.  It goes with an export as it is."""

ROPE_TYPES: Final[dict[str, tuple[str, tuple[str, ...], tuple[str, ...], tuple[str, ...]]]] = {
    "default": ("none", (), (), ("original_max_position_embeddings",)),
    "linear": ("linear", ("factor",), (), ("original_max_position_embeddings",)),
    "dynamic": ("dynamic", ("factor",), (), ()),
    "llama3": ("llama3", ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"), (), ()),
    "yarn": (
        "yarn",
        ("factor", "original_max_position_embeddings"),
        ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
        ("finetuned",),
    ),
    "longrope": (
        "listed",
        ("short_factor", "long_factor"),
        ("attention_factor", "factor", "original_max_position_embeddings"),
        (),
    ),
}
"""Hugging Face's rope type to ours, the fields it needs, those it may have, and those that change nothing."""

_QUANTIZED: Final = "the weights are quantized; use the unquantized checkpoint or a GGUF"

CONFIG: Final = KnownKeys(
    read=_words(
        """model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads
        num_key_value_heads head_dim hidden_act max_position_embeddings rms_norm_eps tie_word_embeddings
        rope_parameters rope_scaling rope_theta partial_rotary_factor original_max_position_embeddings layer_types
        caramba"""
    ),
    ignored=(
        *GENERATION.read,
        *GENERATION.ignored,
        *_words(
            """_name_or_path _commit_hash _from_model_config _attn_implementation _attn_implementation_autoset
            _experts_implementation _flash_attn_2_enabled _sliding_window_pattern architectures auto_map
            transformers_version name_or_path dtype torch_dtype torchscript initializer_range attn_implementation
            experts_implementation use_flash_attn use_return_dict return_dict gradient_checkpointing pretraining_tp
            max_sequence_length model_max_length tie_last_hidden_states chunk_size_feed_forward attention_dropout
            hidden_dropout resid_pdrop embd_pdrop dropout residual_dropout classifier_dropout neftune_noise_alpha
            is_decoder id2label label2id num_labels problem_type finetuning_task task_specific_params
            tokenizer_class prefix sep_token_id tokenizer_model_max_length tokenizer_padding_side use_sliding_window
            max_window_layers is_llama_config transformers.js_config unsloth_* ignore_keys_at_rope_validation
            keys_to_ignore_at_inference"""
        ),
    ),
    fixed={
        "is_causal": ((True,), "tokens would see the text behind them"),
        "is_encoder_decoder": ((False,), "the model would have an encoder"),
        "add_cross_attention": ((False,), "the model would have an encoder"),
        "per_layer_config": (({},), "layers that differ in their configuration are not read"),
        "pruned_heads": (({},), "heads that were removed from some layers are not read"),
        "rope_interleaved": ((False,), "pairs that lie side by side are read from GGUF alone"),
        "use_mrope": ((False,), "rotary positions of several axes are not read"),
        "quantization_config": ((), _QUANTIZED),
        "quantization": ((), f"{_QUANTIZED} (this is MLX's mark)"),
    },
)
"""``config.json`` of every family; what a family reads beyond it is in its :class:`Family`."""


# ------------------------------------------------------------------------------------------------ GGUF

_EXPERTS: Final = "its MLPs are a mixture of experts, which caramba cannot express"

GGUF_NAMES: Final = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "context_length": "max_position_embeddings",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
}
"""What GGUF calls a key of ``config.json``."""

GGUF: Final = KnownKeys(
    read=(
        *GGUF_NAMES,
        *_words(
            """attention.value_length attention.sliding_window rope.dimension_count rope.scaling.type
            rope.scaling.factor
            rope.scaling.original_context_length rope.scaling.attn_factor rope.scale_linear"""
        ),
    ),
    ignored=("rope.scaling.finetuned", "tensor_data_layout"),
    fixed={
        "attention.causal": ((True,), "tokens would see the text behind them"),
        "expert_count": ((0,), _EXPERTS),
        "expert_used_count": ((0,), _EXPERTS),
    },
)
"""Metadata under the architecture's own prefix (``llama.``, ``qwen2.``, ...)."""

GGUF_OUTSIDE: Final = KnownKeys(
    read=("general.architecture", "general.alignment", "split.no", "split.count", "split.tensors.count"),
    ignored=("general.*", "tokenizer.*", "quantize.*", "imatrix.*", "mradermacher.*"),
    fixed={
        "general.type": (("model",), "the file holds no model"),
        "general.quantization_version": ((2,), "its blocks are laid out in another way"),
    },
)
"""Metadata of every architecture; a tokenizer's has a table of its own, which is asked when it is needed."""

TOKENIZER: Final = KnownKeys(
    read=_words(
        """tokenizer.ggml.model tokenizer.ggml.pre tokenizer.ggml.tokens tokenizer.ggml.token_type
        tokenizer.ggml.scores tokenizer.ggml.merges tokenizer.ggml.add_space_prefix tokenizer.ggml.bos_token_id
        tokenizer.ggml.eos_token_id tokenizer.ggml.eot_token_id tokenizer.ggml.eom_token_id
        tokenizer.ggml.unknown_token_id tokenizer.ggml.padding_token_id tokenizer.ggml.add_bos_token
        tokenizer.chat_template"""
    ),
    ignored=(
        "tokenizer.chat_template*",
        "tokenizer.huggingface.json",
        "tokenizer.ggml.*_token_id",
        "tokenizer.ggml.add_*_token",
        "tokenizer.ggml.token_type_count",
        "tokenizer.ggml.suppress_tokens",
    ),
    fixed={
        "tokenizer.ggml.remove_extra_whitespaces": ((False,), "text would be normalized"),
        "tokenizer.ggml.precompiled_charsmap": (([],), "text would be normalized by a table"),
        "tokenizer.ggml.normalizer.lowercase": ((False,), "text would be normalized"),
        "tokenizer.ggml.normalizer.strip_accents": ((False,), "text would be normalized"),
    },
)
