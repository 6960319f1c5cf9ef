"""The config of Decoupled Bottleneck Attention (DBA).

    score_h(t, s) = scale * ( <q_sem_h(t), k_sem(s)> + <R q_geo_h(t), R k_geo_g(h)(s)> )
    y_h(t)        = sum_s softmax_s(score_h(t, s)) v_g(h)(s)        out = W_o concat_h y_h + b_o

The semantic path carries content and has no position; the geometric path carries rotary position.  ``sem_dim``,
``geo_dim`` and ``v_dim`` count the values that are **cached** for a token in one layer: the cache's size is their sum.

With ``latent: joint`` semantic keys are not cached: each head's ``k_sem_g(s) = W_k_up_g c(s)`` is read from the latent
``c`` that its values are read from (as in multi-head latent attention, DeepSeek-V2, arXiv 2405.04434).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final, Literal

from caramba_plugins_standard.gqa import NormedAttention
from caramba_plugins_standard.rope import Rope

from caramba_core.components import CacheEntry, Constant, Cost, Given, Shape, Weight, component, option
from caramba_core.errors import InvalidValue

__all__ = ["DecoupledBottleneckAttention"]

_FREE: Final = "; with layout: free everything goes, and an export brings its own code"


@component
class DecoupledBottleneckAttention(NormedAttention):
    """Attention with keys split into a small semantic and a small rotary part, and values that may be a latent.

    With norms of queries and keys (``qk_norm_eps``) both parts are projected from normalized queries and keys of full
    width, each head's from its own query: ``k_sem = D k_normed``.
    """

    builds: ClassVar[str] = "caramba_plugins_dba.module:DecoupledBottleneckModule"
    takes_starts: ClassVar[bool] = True
    takes_documents: ClassVar[bool] = True
    takes_steps: ClassVar[bool] = True

    head_dim: int = option(
        help="width of a head before the split: twice the rotary pairs to choose from", minimum=2, maximum=65536
    )
    sem_dim: int = option(
        help="cached values of the semantic keys; 0 with latent: joint", unit="values a token and layer", minimum=0
    )
    geo_dim: int = option(
        help="cached values of the rotary keys, all heads together", unit="values a token and layer", minimum=0
    )
    v_dim: int = option(help="cached values of the attention values", unit="values a token and layer", minimum=1)
    layout: Literal["free", "servable"] = option(
        default="free",
        help="servable: what an ordinary grouped-query attention computes, too: in a Llama, an export needs no code",
    )
    geo_layout: Literal["per_head", "shared"] = option(
        default="per_head", help="rotary pairs of each key/value head, or a rotary key that all heads read"
    )
    k_layout: Literal["shared", "per_head"] = option(
        default="shared", help="one semantic latent that all heads read, or a part for each key/value head"
    )
    v_layout: Literal["latent", "per_head"] = option(
        default="latent", help="one value latent that is expanded after attention, or a part for each key/value head"
    )
    latent: Literal["separate", "joint"] = option(
        default="separate",
        help="semantic keys are cached beside the values, or read from the value latent, which is then of both",
    )
    groups: int = option(
        default=1,
        help="shared keys and latents, each for as many of the key/value heads; divides n_kv_heads",
        minimum=1,
    )
    rope: Rope | None = option(default=None, help="rotary embedding that the kept pairs are taken from")
    q_bias: bool = option(default=False, help="add a bias to the queries")
    k_bias: bool = option(
        default=False,
        help="add a bias to the rotary keys, or to all that are normalized; one on semantic keys would change nothing",
    )
    v_bias: bool = option(default=False, help="add a bias to the values, behind the cache")
    o_bias: bool = option(default=False, help="add a bias to the output")
    gate: Literal["none", "static", "dynamic"] = option(
        default="none",
        help="a learned balance of both paths a head: fixed, or read from the token; starts at one to one",
    )
    temperature: bool = option(default=False, help="a learned factor of the scores a head; starts at one")
    tied_semantic: bool = option(default=False, help="semantic queries are the token's own semantic keys")
    null: bool = option(default=False, help="a learned key and value that every token may attend to besides")
    window: int | None = option(
        default=None, help="tokens that a token sees, itself included; all if not given", unit="tokens", minimum=1
    )

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.head_dim % 2:
            raise InvalidValue("head_dim", f"{self.head_dim} is odd", expected="an even width: rotary pairs")
        if self.latent == "joint":
            self._check_joint()
        elif self.sem_dim + self.geo_dim == 0:
            raise InvalidValue("sem_dim", "sem_dim and geo_dim are both 0", expected="keys of at least one kind")
        self._check_groups()
        if self.geo_dim % (2 * self.geo_parts):
            of = "key/value head" if self.geo_layout == "per_head" else "group"
            raise InvalidValue(
                "geo_dim",
                f"{self.geo_dim} is no multiple of {2 * self.geo_parts}",
                expected=f"2 values a pair and {of}",
            )
        if self.geo_dim > self.n_kv_heads * self.head_dim:
            raise InvalidValue(
                "geo_dim",
                f"{self.geo_dim} is more than all pairs of all key/value heads",
                expected=f"at most {self.n_kv_heads * self.head_dim} values",
            )
        if self.geo_dim and self.rope is None:
            raise InvalidValue(
                "rope", "geo_dim above 0 needs a rotary embedding", hint="rope: {theta: 10000.0}, or geo_dim: 0"
            )
        if self.geo_dim and self.rope is not None and self.rope.scaling == "dynamic":
            raise InvalidValue("rope", "dynamic scaling has no fixed frequencies to choose pairs from")
        for field, parts in (("sem_dim", self.sem_parts), ("v_dim", self.v_parts)):
            if getattr(self, field) % parts:
                of = "groups" if parts == self.groups else "n_kv_heads"
                raise InvalidValue(field, f"{getattr(self, field)} is no multiple of {of} ({parts})")
        if self.gate != "none" and not (self.sem_width and self.geo_dim):
            raise InvalidValue("gate", "there is one path only", expected="none, or sem_dim and geo_dim above 0")
        if self.tied_semantic and not self.sem_dim:
            raise InvalidValue("tied_semantic", "there are no semantic keys", expected="false, or sem_dim above 0")
        if self.layout == "servable":
            self._check_servable()

    def _check_groups(self) -> None:
        if self.n_kv_heads % self.groups:
            raise InvalidValue("groups", f"{self.groups} does not divide n_kv_heads ({self.n_kv_heads})")
        for field, shared in (("geo_layout", "shared"), ("k_layout", "shared"), ("v_layout", "latent")):
            if self.groups > 1 and getattr(self, field) != shared:
                raise InvalidValue(field, "groups share rotary keys, semantic keys and values", expected=shared)

    def _check_joint(self) -> None:
        """What keys and values from one latent exclude."""
        for holds, field, reason, expected in (
            (self.sem_dim == 0, "sem_dim", "caches no semantic keys: they are read from the v_dim values", "0"),
            (self.v_layout == "latent", "v_layout", "has one latent", "latent"),
            (self.k_layout == "shared", "k_layout", "has one latent", "shared"),
            (self.groups == 1, "groups", "has one latent for all heads", "1"),
            (not self.tied_semantic, "tied_semantic", "has queries of its own for each head", "false"),
            (not self.null, "null", "has no key and value besides its tokens'", "false"),
            (self.qk_norm_eps is None, "qk_norm_eps", "has keys that are linear in the latent", "none"),
            (
                self.layout == "free",
                "layout",
                "is no ordinary attention, and DeepSeek's normalizes its latent (type mla, layout: servable)",
                "free",
            ),
            (
                self.geo_dim < self.n_kv_heads * self.head_dim,
                "geo_dim",
                "holds what rotary keys leave of the keys, and these leave nothing",
                f"below {self.n_kv_heads * self.head_dim}",
            ),
        ):
            if not holds:
                said = f"{str(getattr(self, field)).lower()}: a joint latent {reason}"
                raise InvalidValue(field, said, expected=expected, hint="latent: separate has it")

    def _check_servable(self) -> None:
        """What an ordinary attention with one key/value head a group cannot express."""
        keys, parity = self.sem_dim + self.geo_dim, 2 * self.groups
        less = "nothing: what is shared loses less in the same cache"
        more = "queries of the whole rotary key, which reads more of the same cache"
        for holds, field, reason, expected, price in (
            (self.geo_layout == "shared", "geo_layout", "one key a group", "shared", f"parameters: {more}"),
            (self.k_layout == "shared", "k_layout", "one key a group", "shared", less),
            (self.v_layout == "latent", "v_layout", "one value a group", "latent", less),
            (not self.tied_semantic, "tied_semantic", "queries of its own for each head", "false", "parameters"),
            (not self.null, "null", "no key and value besides its tokens'", "false", "the option"),
            (self.gate != "dynamic", "gate", "no gate that is read from the token", "static or none", "the option"),
            (self.qk_norm_eps is None, "qk_norm_eps", "no projection behind its norms", "none", "this teacher"),
            (
                keys == self.v_dim,
                "v_dim",
                f"values as wide as its keys ({keys})",
                str(keys),
                "0.4 % of perplexity at half the cache",
            ),
            (self.sem_width % 2 == 0, "sem_dim", "keys made of pairs", f"a multiple of {parity}", "nothing"),
        ):
            if not holds:
                value = getattr(self, field)
                said = f"{str(value).lower()} is not servable: an ordinary attention has {reason}"
                raise InvalidValue(field, said, expected=expected, hint=f"it costs {price}{_FREE}")

    @property
    def pairs(self) -> int:
        """Pairs of one rotary key."""
        return self.geo_dim // (2 * self.geo_parts)

    @property
    def geo_parts(self) -> int:
        """Rotary keys, each of which so many consecutive heads read."""
        return self.groups if self.geo_layout == "shared" else self.n_kv_heads

    @property
    def sem_parts(self) -> int:
        """Semantic keys, in the same sense."""
        return self.groups if self.k_layout == "shared" else self.n_kv_heads

    @property
    def v_parts(self) -> int:
        """Values, in the same sense."""
        return self.groups if self.v_layout == "latent" else self.n_kv_heads

    @property
    def sem_width(self) -> int:
        """Width of one head's semantic query; of a joint latent each head reads keys of its own width."""
        return self.head_dim if self.latent == "joint" else self.sem_dim // self.sem_parts

    @property
    def v_width(self) -> int:
        """Width of one head's values behind the cache."""
        return self.head_dim if self.v_layout == "latent" else self.v_dim // self.n_kv_heads

    @property
    def fused_width(self) -> int:
        """Width of queries, keys and values in the fused call: flash kernels want one width, a multiple of 8."""
        return -(-max(2 * self.pairs + self.sem_width + int(self.null), self.v_width) // 8) * 8

    def weights(self, width: int) -> Mapping[str, Weight]:
        """``*_geo_*`` are of the rotary path, ``*_sem_*`` of the semantic one; ``pairs`` are the kept rotary pairs."""
        heads, groups, rotary = self.n_heads, self.n_kv_heads, 2 * self.pairs
        declared, query, key = self._normed(width)
        if self.pairs:
            declared["q_geo_proj"] = Weight(shape=(heads * rotary, query))
            declared["k_geo_proj"] = Weight(shape=(self.geo_dim, key))
            declared["pairs"] = Weight(
                shape=(self.geo_parts, self.pairs),
                init=Given(values=self._spread_pairs()),
                trainable=False,
                dtype="int64",
            )
        if self.sem_width and not self.tied_semantic:
            declared["q_sem_proj"] = Weight(shape=(heads * self.sem_width, query))
        if self.latent == "joint":
            declared["k_up_proj"] = Weight(shape=(groups * self.head_dim, self.v_dim))
        elif self.sem_dim:
            declared["k_sem_proj"] = Weight(shape=(self.sem_dim, key))
        declared["v_proj"] = Weight(shape=(self.v_dim, width))
        if self.v_layout == "latent":
            declared["v_up_proj"] = Weight(shape=(groups * self.head_dim, self.v_dim // self.groups))
        declared["o_proj"] = Weight(shape=(width, heads * self.v_width))
        zeros = Constant(0.0)
        plain = self.qk_norm_eps is None
        if plain and self.q_bias and self.pairs:
            declared["q_geo_bias"] = Weight(shape=(heads * rotary,), init=zeros)
        if plain and self.q_bias and self.sem_width and not self.tied_semantic:
            declared["q_sem_bias"] = Weight(shape=(heads * self.sem_width,), init=zeros)
        if plain and self.k_bias and self.pairs:
            declared["k_geo_bias"] = Weight(shape=(self.geo_dim,), init=zeros)
        if self.v_bias:
            declared["v_bias"] = Weight(shape=(groups * self.v_width,), init=zeros)
        if self.o_bias:
            declared["o_bias"] = Weight(shape=(width,), init=zeros)
        return {**declared, **self._option_weights(width)}

    def _normed(self, width: int) -> tuple[dict[str, Weight], int, int]:
        """What normalizes queries and keys, and the widths that the projections of both paths read.

        Biases stand before the norms.
        """
        if self.qk_norm_eps is None:
            return {}, width, width
        queries, keys = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        declared = {"q_proj": Weight(shape=(queries, width)), "k_proj": Weight(shape=(keys, width)), **self.norms()}
        for name, size, has in (("q_bias", queries, self.q_bias), ("k_bias", keys, self.k_bias)):
            if has:
                declared[name] = Weight(shape=(size,), init=Constant(0.0))
        return declared, self.head_dim, keys

    def _option_weights(self, width: int) -> dict[str, Weight]:
        """Gates and temperatures are zero where they change nothing."""
        zeros, groups = Constant(0.0), self.n_kv_heads
        declared: dict[str, Weight] = {}
        if self.gate == "static":
            declared["gate"] = Weight(shape=(self.n_heads,), init=zeros)
        if self.gate == "dynamic":
            declared["gate_proj"] = Weight(shape=(self.n_heads, width), init=zeros)
        if self.temperature:
            declared["temperature"] = Weight(shape=(self.n_heads,), init=zeros)
        if self.null:
            if self.sem_dim:
                declared["null_key"] = Weight(shape=(groups * self.sem_width,), init=zeros)
            declared["null_bias"] = Weight(shape=(self.n_heads,), init=zeros)
            declared["null_value"] = Weight(shape=(groups * self.v_width,), init=zeros)
        return declared

    def _spread_pairs(self) -> tuple[int, ...]:
        """Pairs for a model that starts at random: evenly over the spectrum, the fastest among them."""
        available = self.head_dim // 2
        return tuple(index * available // self.pairs for index in range(self.pairs))

    def cache_spec(self, width: int) -> Mapping[str, CacheEntry]:
        """Rotated rotary keys, semantic keys and values: ``sem_dim + geo_dim + v_dim`` values a token.

        What all heads share has one axis, ``[w]``, everything else one for its parts, ``[parts, w]``.
        """
        sizes = {
            "k_geo": (self.geo_dim, self.geo_parts, self.geo_layout),
            "k_sem": (self.sem_dim, self.sem_parts, self.k_layout),
            "v": (self.v_dim, self.v_parts, self.v_layout),
        }
        return {
            name: CacheEntry(
                shape=(size,) if layout != "per_head" and parts == 1 else (parts, size // parts), window=self.window
            )
            for name, (size, parts, layout) in sizes.items()
            if size
        }

    def cost(self, width: int, shape: Shape) -> Cost:
        """Training and prefill count the fused call at its padded width, decoding the absorbed products."""
        rows = shape.rows
        total = Cost(saved=rows * width)  # the input, which every projection reads
        for name, weight in self.weights(width).items():
            if name.endswith("_proj"):
                outputs, inputs = weight.shape
                if name in ("k_up_proj", "v_up_proj") and shape.context > shape.tokens:
                    total += Cost.product(rows * self.n_heads, inputs, self.head_dim)
                else:
                    total += Cost.product(rows, inputs, outputs)
        context = shape.context if self.window is None else min(shape.context, self.window - 1 + shape.tokens)
        pairs, seen = shape.rows * context, shape.causal_pairs(self.window)
        if shape.context > shape.tokens:
            read = self.v_dim // self.v_parts
            key = read if self.latent == "joint" else self.sem_width
            per_pair = 2 * self.n_heads * (2 * self.pairs + key + read)
        else:
            per_pair = 4 * self.n_heads * self.fused_width
            if self.null:  # a token in front of the others
                pairs += shape.batch * (2 * shape.tokens + 1)
                seen += shape.rows + shape.batch
        heads = self.n_heads + self.n_kv_heads  # queries and mixed values of the one, keys and values of the other
        per_token = 2 * heads * self.fused_width + self.n_heads
        if self.qk_norm_eps is not None:
            per_token += self.kept_by_norms() + heads * self.head_dim
        return total + Cost(
            operations=pairs * per_pair,
            causal_operations=seen * per_pair,
            saved=rows * (per_token + (self.v_dim if self.v_layout == "latent" else 0)),
        )
