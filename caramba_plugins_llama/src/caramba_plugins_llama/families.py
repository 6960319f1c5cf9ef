"""The families that are read and written, as data: where Hugging Face's names lead, and what each family adds.

All of them are one decoder: norms, rotary attention, residual, norms, MLP, residual.  They differ in where the norms
stand, in offsets, factors, windows, rotary positions by layer, in the order of rows, and in default values; nothing of
that is code.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Final, Literal

import attrs

from caramba_plugins_llama.known_keys import CONFIG, GGUF, ROPE_TYPES, KnownKeys
from caramba_plugins_llama.latent_rows import JOINED

__all__ = [
    "ACTIVATIONS",
    "ARCHITECTURES",
    "EMBEDDINGS",
    "FAMILIES",
    "HEAD",
    "NORMS",
    "REFUSED",
    "Architecture",
    "Factor",
    "Family",
    "graph_names",
    "hugging_face_keys",
]

ACTIVATIONS: Final = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}
"""Hugging Face's name of an activation to ours, for every family."""


@attrs.frozen
class Factor:
    """A number that follows from a key: its value to the power ``exponent``."""

    key: str
    exponent: float = 1.0


@attrs.frozen(kw_only=True, eq=False)
class Family:
    """One ``model_type`` of Hugging Face.

    ``defaults`` are the values of keys that ``config.json`` leaves out, where they differ from the common ones;
    ``fixed`` are keys of the family's own that are read at one value alone, as in :class:`KnownKeys`.

    The biases say whether projections have offsets, or name the key that says so.  ``qk_norm`` is what one norm of
    queries and keys spans.  ``norms`` are Hugging Face's names of a block's norms in their order, ``norm_places`` where
    they stand: before attention and MLP, behind them (inside of the residual), or around them; ``norm_offset`` is added
    to all their weights.  ``gated`` says whether the MLP has a gate, ``activation`` names the key of its activation,
    and ``activations`` are those that it may have.
    ``factors`` are those of the embedding, of what attention and MLP add to the residual stream, of scores
    (``attention``) and of logits.

    ``window`` says which layers see a window of ``sliding_window`` tokens where ``layer_types`` is missing: all, those
    from ``max_window_layers`` on, those without rotary positions, or (``pattern``) all but one of each ``period``, a
    number or the key that has it: the one at index ``full``.  ``use_sliding_window`` counts from layers on.

    ``rope_layers`` says which layers have rotary positions: all, those that ``no_rope_layers`` marks, or those with a
    window.  ``rope_by_type`` is for families with rotary settings for each type of layer; it names the older key with
    the base of layers with a window, if there was one, and its default.  ``partial_rotary`` says whether
    ``partial_rotary_factor`` counts, ``adjacent_pairs`` whether rotary pairs lie side by side in a head, and
    ``rope_types`` lists those that the family has.

    ``fused`` names projections that are stored as one; ``tensors`` are tensors of a block beyond the usual.
    ``read`` and ``ignored`` are keys of the family's own.

    ``latent_norm_eps`` makes the attention a latent one, whose latent is normalized with this.
    """

    model_type: str
    architecture: str
    defaults: Mapping[str, Any] = attrs.field(factory=dict)
    fixed: Mapping[str, tuple[tuple[Any, ...], str]] = attrs.field(factory=dict)
    qkv_bias: bool | str = False
    o_bias: bool | str = False
    mlp_bias: bool | str = False
    qk_norm: Literal["none", "head", "all"] = "none"
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    norm_places: Literal["before", "behind", "around"] = "before"
    norm_offset: float = 0.0
    gated: bool = True
    activation: str = "hidden_act"
    activations: Mapping[str, str] = ACTIVATIONS
    factors: Mapping[str, Factor] = attrs.field(factory=dict)
    window: Literal["never", "always", "by_layer", "from_layer", "without_rope", "pattern"] = "never"
    period: int | str = 1
    full: int = -1
    rope_layers: Literal["all", "marked", "with_window"] = "all"
    rope_by_type: tuple[str, float] | None = None
    rope_types: tuple[str, ...] = tuple(ROPE_TYPES)
    partial_rotary: bool = False
    adjacent_pairs: bool = False
    fused: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)
    tensors: Mapping[str, str] = attrs.field(factory=dict)
    read: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    latent_norm_eps: float | None = None

    @property
    def keys(self) -> KnownKeys:
        """The keys of ``config.json`` that are known."""
        named = {rule for rule in (self.qkv_bias, self.o_bias, self.mlp_bias) if isinstance(rule, str)}
        named |= {self.activation, *(factor.key for factor in self.factors.values())}
        fixed = {**CONFIG.fixed, **self.fixed}
        for key, has in (("attention_bias", self.qkv_bias or self.o_bias), ("mlp_bias", self.mlp_bias)):
            if not has:
                fixed[key] = (False,), f"a {self.model_type} model has no such offsets"
        if self.window == "never":
            fixed["sliding_window"] = (), f"a {self.model_type} model has no window"
        else:
            named.add("sliding_window")
        if self.window in ("from_layer", "without_rope"):
            named.add("use_sliding_window")
        if self.window == "from_layer":
            named.add("max_window_layers")
        if isinstance(self.period, str):
            named.add(self.period)
        if self.rope_layers == "marked":
            named |= {"no_rope_layers", "no_rope_layer_interval"}
        if self.rope_by_type is not None and self.rope_by_type[0]:
            named.add(self.rope_by_type[0])
        named |= {*self.read}
        read = [*CONFIG.read, *sorted(named - {*CONFIG.read})]
        unread = (*CONFIG.ignored, *self.ignored, "attention_bias", "mlp_bias")
        ignored = [key for key in unread if key not in (*read, *fixed)]
        return KnownKeys(read=tuple(read), ignored=tuple(ignored), fixed=fixed)


_LLAMA3: Final = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_FUSED_MLP: Final = {"mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj")}
_BEHIND: Final = ("post_attention_layernorm", "post_feedforward_layernorm")
_FIXED_LENGTH: Final = ("default", "linear", "llama3", "yarn")
_ATTENTION_BIAS: Final[dict[str, Any]] = {"qkv_bias": "attention_bias", "o_bias": "attention_bias"}
_GEMMA: Final[dict[str, Any]] = {
    **_ATTENTION_BIAS,
    "norm_offset": 1.0,
    "activation": "hidden_activation",
}
_GEMMA_DEFAULTS: Final[dict[str, Any]] = {
    "tie_word_embeddings": True,
    "hidden_activation": "gelu_pytorch_tanh",
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
}
_GEMMA_FIXED: Final = {"use_bidirectional_attention": ((False,), "tokens would see the text behind them")}

FAMILIES: Final[dict[str, Family]] = {
    family.model_type: family
    for family in (
        Family(
            model_type="llama",
            architecture="LlamaForCausalLM",
            defaults={"max_position_embeddings": 2048},
            **_ATTENTION_BIAS,
            mlp_bias="mlp_bias",
        ),
        Family(
            model_type="mistral",
            architecture="MistralForCausalLM",
            defaults={"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
            window="always",
        ),
        Family(
            model_type="ministral",
            architecture="MinistralForCausalLM",
            defaults={"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
            window="by_layer",
        ),
        Family(
            model_type="qwen2",
            architecture="Qwen2ForCausalLM",
            defaults={
                "max_position_embeddings": 32768,
                "num_key_value_heads": 32,
                "sliding_window": 4096,
                "max_window_layers": 28,
            },
            qkv_bias=True,
            window="from_layer",
        ),
        Family(
            model_type="qwen3",
            architecture="Qwen3ForCausalLM",
            defaults={
                "max_position_embeddings": 32768,
                "num_key_value_heads": 32,
                "head_dim": 128,
                "sliding_window": 4096,
                "max_window_layers": 28,
            },
            **_ATTENTION_BIAS,
            qk_norm="head",
            window="from_layer",
        ),
        Family(
            model_type="smollm3",
            architecture="SmolLM3ForCausalLM",
            defaults={
                "max_position_embeddings": 32768,
                "num_key_value_heads": 4,
                "rope_theta": 2e6,
                "no_rope_layer_interval": 4,
                "tie_word_embeddings": True,
            },
            **_ATTENTION_BIAS,
            mlp_bias="mlp_bias",
            window="without_rope",
            rope_layers="marked",
        ),
        Family(
            model_type="granite",
            architecture="GraniteForCausalLM",
            defaults={"max_position_embeddings": 2048, "attention_multiplier": 1.0},
            **_ATTENTION_BIAS,
            mlp_bias="mlp_bias",
            factors={
                "embedding": Factor("embedding_multiplier"),
                "residual": Factor("residual_multiplier"),
                "attention": Factor("attention_multiplier"),
                "logits": Factor("logits_scaling", -1.0),
            },
        ),
        Family(
            model_type="olmo2",
            architecture="Olmo2ForCausalLM",
            defaults={"max_position_embeddings": 2048, "rms_norm_eps": 1e-5},
            **_ATTENTION_BIAS,
            qk_norm="all",
            norms=_BEHIND,
            norm_places="behind",
        ),
        Family(
            model_type="olmo3",
            architecture="Olmo3ForCausalLM",
            defaults={
                "max_position_embeddings": 2048,
                "rms_norm_eps": 1e-5,
                "sliding_window": 4096,
                "rope_theta": 5e5,
            },
            **_ATTENTION_BIAS,
            qk_norm="all",
            norms=_BEHIND,
            norm_places="behind",
            window="pattern",
            period=4,
            rope_by_type=("", 5e5),
            rope_types=_FIXED_LENGTH,
        ),
        Family(
            model_type="glm4",
            architecture="Glm4ForCausalLM",
            defaults={
                "max_position_embeddings": 131072,
                "num_key_value_heads": 2,
                "head_dim": 128,
                "rms_norm_eps": 1.5625e-7,
                "attention_bias": True,
                "partial_rotary_factor": 0.5,
            },
            qkv_bias="attention_bias",
            norms=(
                "input_layernorm",
                "post_self_attn_layernorm",
                "post_attention_layernorm",
                "post_mlp_layernorm",
            ),
            norm_places="around",
            partial_rotary=True,
            adjacent_pairs=True,
            fused=_FUSED_MLP,
        ),
        Family(
            model_type="phi3",
            architecture="Phi3ForCausalLM",
            defaults={"max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "sliding_window": None},
            window="always",
            rope_types=("default",),
            partial_rotary=True,
            fused={
                "self_attn.qkv_proj": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
                **_FUSED_MLP,
            },
        ),
        Family(
            model_type="gemma",
            architecture="GemmaForCausalLM",
            defaults={
                **_GEMMA_DEFAULTS,
                "hidden_act": "gelu_pytorch_tanh",
                "max_position_embeddings": 8192,
                "num_key_value_heads": 16,
            },
            fixed=_GEMMA_FIXED,
            **{**_GEMMA, "activation": "hidden_act"},
            activations={**ACTIVATIONS, "gelu": "gelu_tanh"},
            factors={"embedding": Factor("hidden_size", 0.5)},
        ),
        Family(
            model_type="gemma3_text",
            architecture="Gemma3ForCausalLM",
            defaults={
                **_GEMMA_DEFAULTS,
                "max_position_embeddings": 131072,
                "num_key_value_heads": 4,
                "sliding_window": 4096,
                "query_pre_attn_scalar": 256,
                "sliding_window_pattern": 6,
                "rope_theta": 1e6,
            },
            fixed={
                **_GEMMA_FIXED,
                "attn_logit_softcapping": ((), "scores would be capped softly"),
                "final_logit_softcapping": ((), "logits would be capped softly"),
            },
            **_GEMMA,
            qk_norm="head",
            norms=(
                "input_layernorm",
                "post_attention_layernorm",
                "pre_feedforward_layernorm",
                "post_feedforward_layernorm",
            ),
            norm_places="around",
            factors={"embedding": Factor("hidden_size", 0.5), "attention": Factor("query_pre_attn_scalar", -0.5)},
            window="pattern",
            period="sliding_window_pattern",
            rope_by_type=("rope_local_base_freq", 1e4),
            rope_types=_FIXED_LENGTH,
        ),
        Family(
            model_type="ernie4_5",
            architecture="Ernie4_5ForCausalLM",
            defaults={
                "max_position_embeddings": 131072,
                "num_key_value_heads": 2,
                "head_dim": 128,
                "rms_norm_eps": 1e-5,
                "rope_theta": 5e5,
                "tie_word_embeddings": True,
            },
            qkv_bias="use_bias",
            o_bias="use_bias",
            mlp_bias="use_bias",
            adjacent_pairs=True,
        ),
        Family(
            model_type="seed_oss",
            architecture="SeedOssForCausalLM",
            defaults={
                "max_position_embeddings": 524288,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "attention_bias": True,
            },
            qkv_bias="attention_bias",
            o_bias="attention_out_bias",
            mlp_bias="mlp_bias",
        ),
        Family(
            model_type="exaone4",
            architecture="Exaone4ForCausalLM",
            defaults={
                "max_position_embeddings": 2048,
                "num_key_value_heads": 32,
                "rms_norm_eps": 1e-5,
                "sliding_window": 4096,
                "sliding_window_pattern": 4,
            },
            qk_norm="head",
            norms=_BEHIND,
            norm_places="behind",
            window="pattern",
            period="sliding_window_pattern",
            rope_layers="with_window",
        ),
        Family(
            model_type="apertus",
            architecture="ApertusForCausalLM",
            defaults={
                "max_position_embeddings": 65536,
                "rms_norm_eps": 1e-5,
                "hidden_act": "xielu",
                "rope_theta": 1.2e7,
                "rope_parameters": {**_LLAMA3, "factor": 8.0, "rope_theta": 1.2e7},
            },
            fixed={
                "post_norm": ((False,), "its norms would stand elsewhere"),
                "qk_norm": ((True,), "its queries and keys would not be normalized"),
            },
            **_ATTENTION_BIAS,
            qk_norm="head",
            norms=("attention_layernorm", "feedforward_layernorm"),
            gated=False,
            activations={**ACTIVATIONS, "xielu": "xielu"},
            tensors={
                "mlp.act_fn.alpha_p": "mlp.xielu_p",
                "mlp.act_fn.alpha_n": "mlp.xielu_n",
                "mlp.act_fn.beta": "mlp.xielu_beta",
                "mlp.act_fn.eps": "mlp.xielu_eps",
            },
        ),
        Family(
            model_type="arcee",
            architecture="ArceeForCausalLM",
            defaults={"max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "hidden_act": "relu2"},
            **_ATTENTION_BIAS,
            mlp_bias="mlp_bias",
            gated=False,
        ),
        Family(
            model_type="cwm",
            architecture="CwmForCausalLM",
            defaults={
                "max_position_embeddings": 131072,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "rms_norm_eps": 1e-5,
                "sliding_window": 8192,
                "rope_theta": 1e6,
                "rope_parameters": {**_LLAMA3, "factor": 16.0, "rope_theta": 1e6},
            },
            mlp_bias="mlp_bias",
            window="pattern",
            period=4,
            full=0,
        ),
        Family(
            model_type="helium",
            architecture="HeliumForCausalLM",
            defaults={
                "max_position_embeddings": 4096,
                "num_key_value_heads": 20,
                "head_dim": 128,
                "rms_norm_eps": 1e-8,
                "rope_theta": 1e5,
            },
            qkv_bias="attention_bias",
            mlp_bias="mlp_bias",
            adjacent_pairs=True,
        ),
        Family(
            model_type="deepseek_v3",
            architecture="DeepseekV3ForCausalLM",
            defaults={
                "max_position_embeddings": 4096,
                "kv_lora_rank": 512,
                "q_lora_rank": 1536,
                "qk_rope_head_dim": 64,
                "qk_nope_head_dim": 128,
                "v_head_dim": 128,
                "first_k_dense_replace": 3,
            },
            fixed={
                "rope_interleave": ((True,), "its rotary pairs would lie half of the rotary part apart"),
                "use_mla": ((True,), "its attention would be another one"),
            },
            read=(
                *("kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"),
                "first_k_dense_replace",
            ),
            ignored=(
                *("moe_intermediate_size", "n_shared_experts", "n_routed_experts", "routed_scaling_factor"),
                *("n_group", "topk_group", "num_experts_per_tok", "norm_topk_prob", "output_router_logits"),
                *("num_nextn_predict_layers", "num_mtp_layers", "num_local_experts", "qk_head_dim", "topk_method"),
                *("scoring_func", "moe_layer_freq", "ep_size", "aux_loss_alpha", "seq_aux"),
            ),
            rope_types=("default", "longrope"),
            fused=JOINED,
            tensors={"self_attn.kv_a_layernorm.weight": "attention.latent_norm"},
            latent_norm_eps=1e-6,
        ),
    )
}
"""By ``model_type``.  Llama 1 to 3.x and SmolLM2 are ``llama``; Qwen2.5 is ``qwen2``; Phi-4 is ``phi3``; a ``mistral``
that has ``layer_types`` is a ``ministral``, in transformers too."""

_EXPERTS: Final = "its MLPs are a mixture of experts"

REFUSED: Final[dict[str, str]] = {
    "gemma2": "it caps attention scores softly",
    "vaultgemma": "it caps attention scores softly",
    "gemma3": "its text model lies inside of one that sees images",
    "gemma3n": "its layers mix several residual streams",
    "hunyuan_v1_dense": "it normalizes queries and keys behind their rotation",
    "granite_swa": "its heads attend to a learned sink",
    "ministral3": "it scales queries by the logarithm of their position",
    "cohere": "its attention and MLP stand side by side behind one norm",
    "cohere2": "its attention and MLP stand side by side behind one norm",
    "stablelm": "its norms subtract the mean",
    "nemotron": "its norms subtract the mean",
    "starcoder2": "its norms subtract the mean",
    "nanochat": "it caps logits softly",
    "lfm2": "some of its layers are convolutions",
    "qwen3_next": "some of its layers are linear attention",
    "deepseek_v2": "its latent attention is read of deepseek_v3 alone",
    "deepseek_v32": "its attention chooses among the tokens",
    "glm4_moe": _EXPERTS,
    "gpt_oss": _EXPERTS,
    "granitemoe": _EXPERTS,
    "mixtral": _EXPERTS,
    "qwen2_moe": _EXPERTS,
    "qwen3_moe": _EXPERTS,
    "llama4": _EXPERTS,
    "llama4_text": _EXPERTS,
    "gpt2": "it has learned positions and no gated MLP",
}
"""Model types that are known and cannot be expressed, and why."""


# ------------------------------------------------------------------------------------------------ Hugging Face's names

EMBEDDINGS: Final = "embedder.weight"
HEAD: Final = "head.weight"
_OUTSIDE: Final = {"embed_tokens.weight": EMBEDDINGS, "norm.weight": "norm.weight", "lm_head.weight": HEAD}
_PROJECTIONS: Final = {
    **{f"self_attn.{name}_proj": f"attention.{name}" for name in ("q", "k", "v", "o")},
    **{f"mlp.{name}_proj": f"mlp.{name}" for name in ("gate", "up", "down")},
}
NORMS: Final = ("norm.weight", "norm_2.weight", "norm_3.weight", "norm_4.weight")
"""A block's norms, in the order of :attr:`Family.norms`."""
_IGNORED: Final = ("self_attn.rotary_emb.inv_freq",)
"""Old checkpoints store rotary frequencies; they follow from the configuration."""


@cache
def _block(family: Family) -> dict[str, tuple[str, ...]]:
    """The parameters of a block that each of its Hugging Face tensors fills, one below the other."""
    fused = {key for names in family.fused.values() for key in names}
    block: dict[str, tuple[str, ...]] = {
        f"{key}.weight": (name,) for key, name in zip(family.norms, NORMS, strict=False)
    }
    block |= {f"self_attn.{name}.weight": (f"attention.{name}",) for name in ("q_norm", "k_norm")}
    for key, name in _PROJECTIONS.items():
        if f"{name}_proj" not in fused:
            block |= {f"{key}.weight": (f"{name}_proj",), f"{key}.bias": (f"{name}_bias",)}
    block |= {f"{key}.weight": names for key, names in family.fused.items()}
    return block | {key: (name,) for key, name in family.tensors.items()}


def graph_names(key: str, family: Family) -> tuple[str, ...]:
    """The parameters that a Hugging Face tensor fills: none where none is needed, the key where none is known.

    The prefix ``model.`` may be missing (checkpoints of a model without head), or stand before the head.  Where there
    are several, their rows stand one below the other.
    """
    bare = key.removeprefix("model.")
    if bare in _OUTSIDE:
        return (_OUTSIDE[bare],)
    layers, index, rest = [*bare.split(".", 2), "", ""][:3]
    if layers != "layers" or not index.isdecimal():
        return (key,)
    if rest in _IGNORED:
        return ()
    names = _block(family).get(rest)
    return (key,) if names is None else tuple(f"blocks.{int(index)}.{name}" for name in names)


def hugging_face_keys(family: Family = FAMILIES["llama"]) -> dict[str, str]:
    """The Hugging Face tensor that each parameter of the graph is written as; ``{}`` stands for a block's number.

    Parameters with one key are its rows, in this order.
    """
    blocks = {
        f"blocks.{{}}.{name}": f"model.layers.{{}}.{key}" for key, names in _block(family).items() for name in names
    }
    outside = {name: key if name == HEAD else f"model.{key}" for key, name in _OUTSIDE.items()}
    return {**outside, **blocks}


# ------------------------------------------------------------------------------------------------ GGUF's names


@attrs.frozen(kw_only=True)
class Architecture:
    """One ``general.architecture`` of GGUF: the family, and whether the rotary pairs lie side by side in a head.

    ``names`` are metadata beyond the usual, and the keys of ``config.json`` that they stand for: factors, of which a
    file may leave out all but the ``required`` ones, or give 0 for none.  ``settings`` are what llama.cpp takes for
    granted, ``norms`` the names of a block's norms in their order.  ``positions`` says that ``rope.scaling.finetuned``
    switches rotary positions on and off; ``latent`` that the attention is a latent one; ``ignored`` are metadata
    without effect.
    """

    model_type: str
    adjacent_pairs: bool
    names: Mapping[str, str] = attrs.field(factory=dict)
    required: tuple[str, ...] = ()
    settings: Mapping[str, Any] = attrs.field(factory=dict)
    norms: tuple[str, ...] = ("attn_norm", "ffn_norm")
    positions: bool = False
    latent: bool = False
    ignored: tuple[str, ...] = ()

    @property
    def keys(self) -> KnownKeys:
        """The metadata under the architecture's own prefix."""
        switch = {"rope.scaling.finetuned": ((True,), "none of its layers would have rotary positions")}
        fixed = {**GGUF.fixed, **(switch if self.positions else {})}
        ignored = (*GGUF.ignored, *self.ignored)
        return attrs.evolve(GGUF, read=(*GGUF.read, *self.names), fixed=fixed, ignored=ignored)


ARCHITECTURES: Final = {
    "llama": Architecture(model_type="llama", adjacent_pairs=True),
    "qwen2": Architecture(model_type="qwen2", adjacent_pairs=False),
    "qwen3": Architecture(model_type="qwen3", adjacent_pairs=False),
    "smollm3": Architecture(model_type="smollm3", adjacent_pairs=True, settings={"no_rope_layer_interval": 4}),
    "granite": Architecture(
        model_type="granite",
        adjacent_pairs=True,
        names={
            "embedding_scale": "embedding_multiplier",
            "residual_scale": "residual_multiplier",
            "attention.scale": "attention_multiplier",
            "logit_scale": "logits_scaling",
        },
        required=("logit_scale",),
        positions=True,
    ),
    "olmo2": Architecture(model_type="olmo2", adjacent_pairs=False, norms=("post_attention_norm", "post_ffw_norm")),
    "ernie4_5": Architecture(model_type="ernie4_5", adjacent_pairs=True),
    "seed_oss": Architecture(model_type="seed_oss", adjacent_pairs=False, norms=("attn_norm", "post_attention_norm")),
    "arcee": Architecture(model_type="arcee", adjacent_pairs=True, settings={"hidden_act": "relu2"}),
    "deepseek2": Architecture(
        model_type="deepseek_v3",
        adjacent_pairs=True,
        names={
            "leading_dense_block_count": "first_k_dense_replace",
            "attention.q_lora_rank": "q_lora_rank",
            "attention.kv_lora_rank": "kv_lora_rank",
            "attention.key_length_mla": "qk_head_dim",
            "attention.value_length_mla": "v_head_dim",
        },
        required=(
            *("leading_dense_block_count", "attention.kv_lora_rank", "rope.dimension_count"),
            *("attention.key_length_mla", "attention.value_length_mla"),
        ),
        latent=True,
        ignored=(
            *("expert_feed_forward_length", "expert_shared_count", "expert_weights_scale", "expert_weights_norm"),
            *("expert_gating_func", "expert_group_count", "expert_group_used_count"),
        ),
    ),
}
"""Mistral's files call themselves ``llama``."""
