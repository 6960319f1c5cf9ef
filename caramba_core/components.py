"""What a component is: a typed config that says, as data, what it holds and what it costs.

A component is two things: a frozen ``attrs`` config (this module; light, never imports torch) and the torch module
that the config names in ``builds``.  The config declares its weights once, as shapes; the plan sums them without torch
and the builder creates exactly these parameters.  A plugin registers the config under its short name in the entry-point
group of its kind (see :mod:`caramba_core.kinds`).

Axes used throughout caramba:

    B batch    T tokens of this pass    S tokens in the cache or context    D width of the residual stream
    H query heads    G key/value heads    d width of one head    P = d/2 rotary pairs    F hidden width of an MLP
    V vocabulary    C cached values of one token
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, TypedDict, TypeVar, Unpack, cast, dataclass_transform

import attrs

from caramba_core.errors import InvalidValue

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "ITEM_BYTES",
    "Attention",
    "Body",
    "CacheEntry",
    "Component",
    "Constant",
    "Cost",
    "Embedder",
    "Given",
    "Head",
    "Layer",
    "Model",
    "Normal",
    "Shape",
    "Storage",
    "Topology",
    "Weight",
    "component",
    "evolve",
    "option",
]

_C = TypeVar("_C", bound=type)
_T = TypeVar("_T")

ITEM_BYTES: Final[Mapping[str, int]] = {
    **dict.fromkeys(("float64", "int64"), 8),
    **dict.fromkeys(("float32", "int32"), 4),
    **dict.fromkeys(("bfloat16", "float16", "int16"), 2),
    **dict.fromkeys(("float8_e4m3fn", "float8_e5m2", "int8", "uint8", "bool"), 1),
}
"""Bytes per value of each type, by torch's names."""


# ------------------------------------------------------------------------------------------------ what is declared


@attrs.frozen
class Normal:
    """Initial values from a normal distribution with mean 0 and standard deviation ``std``."""

    std: float = 0.02


@attrs.frozen
class Constant:
    """Initial values that are all ``value``."""

    value: float = 0.0


@attrs.frozen(kw_only=True)
class Given:
    """Initial values that are listed, one for each place of the last axis and the same in every row."""

    values: tuple[float, ...]


@attrs.frozen(kw_only=True)
class Weight:
    """One tensor that a component owns.

    ``shape`` is ``[out, in]`` for projections, as in torch and in Hugging Face checkpoints.  ``trainable=False``
    declares a buffer that is stored in checkpoints (DBA's kept rotary frequencies).  ``dtype`` pins the storage type
    ("float32", "int64"); ``None`` follows the model's.
    """

    shape: tuple[int, ...]
    init: Normal | Constant | Given = Normal()
    trainable: bool = True
    dtype: str | None = None

    @property
    def numel(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@attrs.frozen(kw_only=True)
class Shape:
    """The size of one pass: ``batch`` sequences of ``tokens`` new tokens, each attending to ``context`` tokens.

    Training and prefill have ``context == tokens``; decoding has ``tokens == 1`` and the cache's length as context.
    """

    batch: int
    tokens: int
    context: int

    @property
    def rows(self) -> int:
        """New tokens in all sequences."""
        return self.batch * self.tokens

    def causal_pairs(self, window: int | None = None) -> int:
        """Pairs of a new token and one it sees, over all sequences: itself and what precedes it, within ``window``."""
        before = self.context - self.tokens
        limit = self.context if window is None else min(window, self.context)
        growing = min(self.tokens, max(0, limit - before))  # so many new tokens see everything before them
        return self.batch * (growing * before + growing * (growing + 1) // 2 + (self.tokens - growing) * limit)


@attrs.frozen(kw_only=True)
class Cost:
    """What one pass through a component takes.

    ``operations`` are floating-point operations of matrix products (a multiply-add counts 2), attention counted in full
    as ``torch.utils.flop_counter`` does; ``causal_operations`` counts only the pairs that a causal mask keeps;
    ``saved`` is the number of values kept for the backward pass.
    """

    operations: int = 0
    causal_operations: int = 0
    saved: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            operations=self.operations + other.operations,
            causal_operations=self.causal_operations + other.causal_operations,
            saved=self.saved + other.saved,
        )

    @classmethod
    def product(cls, rows: int, inner: int, columns: int, *, saved: int = 0) -> Cost:
        """A dense product ``[rows, inner] x [inner, columns]``."""
        operations = 2 * rows * inner * columns
        return cls(operations=operations, causal_operations=operations, saved=saved)


@attrs.frozen(kw_only=True)
class CacheEntry:
    """One tensor that decoding keeps for a layer: ``shape`` values for each token, or once a sequence.

    ``per_token=False`` is a state of constant size (a linear attention's).  ``window`` bounds how many tokens are kept:
    the first ``sinks`` of the text, for the rest the last ones.  ``dtype`` pins the storage type; ``None`` follows the
    pass.
    """

    shape: tuple[int, ...]
    per_token: bool = True
    window: int | None = None
    sinks: int = 0
    dtype: str | None = None

    @property
    def values(self) -> int:
        """Values a token, or a sequence where ``per_token`` is false."""
        return math.prod(self.shape)


# ------------------------------------------------------------------------------------------------ how it is declared


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(attrs.field,))
def component(cls: _C) -> _C:
    """Make a config class: frozen, slotted, keyword-only, validated."""
    return attrs.frozen(kw_only=True, slots=True)(cls)


class Rules(TypedDict, total=False):
    """What a field allows, and how messages, ``caramba explain`` and the JSON Schema put it.

    ``minimum`` and ``maximum`` include their bound, ``above`` and ``below`` exclude it; ``choices`` lists the values.
    ``pattern`` is a regular expression that a whole string must match, ``form`` the same in words.
    ``implied``: where a manifest leaves the field out or gives null, the default component of its kind stands there.
    """

    unit: str
    minimum: float
    maximum: float
    above: float
    below: float
    choices: Sequence[Any]
    pattern: str
    form: str
    implied: bool


_BOUNDS: Final[dict[str, tuple[Callable[[Any, Any], bool], str]]] = {
    "minimum": (operator.lt, "is below"),
    "above": (operator.le, "is not above"),
    "maximum": (operator.gt, "is above"),
    "below": (operator.ge, "is not below"),
}
"""For each bound, when a value breaks it and how that is said."""


def option(
    *, help: str, default: Any = attrs.NOTHING, factory: Callable[[], Any] | None = None, **rules: Unpack[Rules]
) -> Any:
    """A documented field of a config, checked by its :class:`Rules`; ``None`` is never checked."""
    initial = attrs.NOTHING if factory is None else attrs.Factory(factory)
    return attrs.field(
        default=initial if default is attrs.NOTHING else default, validator=_check, metadata={"help": help, **rules}
    )


def _check(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Raise :class:`InvalidValue` where a value breaks a rule of its field."""
    name, rules = attribute.name, attribute.metadata
    if value is None:
        return
    if "pattern" in rules and re.fullmatch(rules["pattern"], value) is None:
        shown = repr(value if len(value) <= 60 else f"{value[:57]}...")
        raise InvalidValue(name, f"{shown} is not of the right form", expected=rules.get("form", rules["pattern"]))
    if "choices" in rules and value not in rules["choices"]:
        raise InvalidValue(name, f"{value!r} is not a choice", expected=", ".join(map(str, rules["choices"])))
    for bound, (broken, words) in _BOUNDS.items():
        if bound in rules and broken(value, rules[bound]):
            unit = f" {rules['unit']}" if "unit" in rules else ""
            raise InvalidValue(name, f"{value} {words} {rules[bound]}{unit}")


def evolve(config: _T, **changes: Any) -> _T:
    """The same config with some fields changed, validated anew."""
    return cast(_T, attrs.evolve(cast(Any, config), **changes))


# ------------------------------------------------------------------------------------------------ the kinds of node


@component
class Component:
    """Base of every config that a manifest can name by ``type:``.

    ``builds`` is the import path ``package.module:Name`` of what the config stands for; nothing is imported until then.
    A class that declares a ``kind`` of its own is the base of that kind: a field of its type takes any component of the
    kind, which the key ``tag`` names.
    """

    builds: ClassVar[str]
    kind: ClassVar[str]
    tag: ClassVar[str] = "type"


@component
class Storage(Component):
    """How a cache stores its per-token entries, in tensors that each hold a part of every token.

    ``builds`` is not used: the methods import torch themselves.  Every setting has a default, so that plans can say
    what each installed storage takes.  States, and entries that pin a type, are stored as they are.
    """

    kind: ClassVar[str] = "storage"
    builds: ClassVar[str] = ""

    def planes(self, values: int) -> Mapping[str, tuple[tuple[int, ...], str]]:
        """The tensors for an entry of ``values`` values, by suffix of its name: shape per token, torch's type."""
        raise NotImplementedError(f"{type(self).__name__} does not define planes")

    def encode(self, values: Tensor) -> tuple[Tensor, ...]:
        """What each tensor holds of tokens ``[B, T, values]``: ``[B, T, *shape]`` in its type."""
        raise NotImplementedError(f"{type(self).__name__} does not define encode")

    def decode(self, planes: tuple[Tensor, ...], values: int) -> Tensor:
        """What reading these tokens gives: ``[B, T, values]``."""
        raise NotImplementedError(f"{type(self).__name__} does not define decode")

    def quantizes(self, entry: CacheEntry) -> bool:
        """Whether this entry is stored this way."""
        return entry.per_token and entry.dtype is None

    def bytes(self, entry: CacheEntry) -> int:
        """Bytes per token of an entry that is."""
        return sum(math.prod(shape) * ITEM_BYTES[dtype] for shape, dtype in self.planes(entry.values).values())


@component
class Layer(Component):
    """A node of the graph: ``[B, T, width] -> [B, T, output_width(width)]``.

    ``name`` is the node's own name in its parent; without one the node takes ``role``, the name that its kind fixes.
    """

    kind: ClassVar[str] = "layer"
    role: ClassVar[str]
    output_weights: ClassVar[tuple[str, str] | None] = None
    """Weight names of the output projection ``[D, n]``, which reads what the module's ``mix`` returns, and its bias."""

    inherited: ClassVar[tuple[str, ...]] = ("name",)
    """Fields that a layer of another type takes over when it is put in this one's place, as far as it has them."""

    name: str | None = option(default=None, help="the node's name in its parent; the role of its kind if not given")

    def check(self, width: int) -> None:
        """Raise :class:`InvalidValue` where the config cannot take an input of this width."""

    def output_width(self, width: int) -> int:
        """Width of the output for an input of ``width``."""
        return width

    def weights(self, width: int) -> Mapping[str, Weight]:
        """The tensors that this node owns itself, by local name."""
        return {}

    def cost(self, width: int, shape: Shape) -> Cost:
        """What one pass takes, without the children's."""
        return Cost()


@component
class Attention(Layer):
    """A layer that mixes tokens.  Its ``builds`` follows the seam described in :mod:`caramba_core.nn.module`."""

    kind: ClassVar[str] = "attention"
    role: ClassVar[str] = "attention"
    output_weights: ClassVar[tuple[str, str] | None] = ("o_proj", "o_bias")

    cache: Storage | None = option(
        default=None, help="how its keys and values are cached, unless eval.cache says; as computed if not given"
    )

    def cache_spec(self, width: int) -> Mapping[str, CacheEntry]:
        """What decoding keeps a layer; allocation, plan, truncation and export all follow from it."""
        return {}

    @property
    def takes_starts(self) -> bool:
        """Whether sequences of one pass may start at different places: its module heeds ``frame.starts``."""
        return False

    @property
    def takes_documents(self) -> bool:
        """Whether a pass without a cache hides ``frame.hidden_keys`` and knows places by ``frame.positions`` alone."""
        return False

    @property
    def takes_steps(self) -> bool:
        """Whether decoding can be recorded and replayed: its module heeds ``frame.ends``."""
        return False


@component
class Embedder(Layer):
    """Turns token ids ``[B, T]`` into ``[B, T, D]``; its input width is the vocabulary size."""

    kind: ClassVar[str] = "embedder"
    role: ClassVar[str] = "embedder"

    vocab_size: int = option(help="number of token ids", unit="tokens", minimum=1)


@component
class Head(Layer):
    """Turns ``[B, T, D]`` into logits ``[B, T, V]`` with a matrix ``weight`` of shape ``[V, D]``.

    Lowering fills ``vocab_size`` from the embedder and ``tied`` from ``model.tied_embeddings``; a tied head owns no
    matrix and is given the embedder's.
    """

    kind: ClassVar[str] = "head"
    role: ClassVar[str] = "head"

    vocab_size: int | None = option(default=None, help="number of logits; the embedder's if not given", minimum=1)
    tied: bool = option(default=False, help="read the embedder's matrix instead of owning one")


@attrs.frozen(kw_only=True)
class Body:
    """A chain of layers inside a topology.

    ``name`` is the scope that its nodes live in (``None``: the topology's own); ``applications`` says how often one
    pass runs it with the same weights; every application keeps its own cache.
    """

    layers: tuple[Layer, ...]
    name: str | None = None
    applications: int = 1


@component
class Topology(Layer):
    """A layer made of layers.

    ``flow`` says how its bodies connect: ``chain`` feeds each the one before, ``fan`` feeds all of them its input.
    ``inline`` names a function ``(run, x) -> y`` for wiring without weights that adds no name of its own to the graph:
    its layers are named as if they stood in its place (``blocks.3.attention``).
    """

    kind: ClassVar[str] = "topology"
    role: ClassVar[str] = "topology"
    flow: ClassVar[Literal["chain", "fan"]] = "chain"
    inline: ClassVar[str | None] = None
    separable: ClassVar[bool] = False
    """Whether running the bodies in turn is all that the node does, so that calibration may stop between them."""

    adds_input: ClassVar[bool] = False
    """Whether the output is the input plus what the bodies give; pictures show it."""

    def bodies(self) -> Sequence[Body]:
        """The chains that this node runs, in order."""
        raise NotImplementedError

    def output_widths(self, width: int) -> tuple[int, ...]:
        """Output width of each body, for an input of ``width``."""
        outputs: list[int] = []
        for body in self.bodies():
            flowing = outputs[-1] if outputs and self.flow == "chain" else width
            for layer in body.layers:
                flowing = layer.output_width(flowing)
            outputs.append(flowing)
        return tuple(outputs)

    def output_width(self, width: int) -> int:
        """Width of the output for an input of ``width``; raise :class:`InvalidValue` where the bodies do not meet."""
        return self.join(width, self.output_widths(width))

    def join(self, width: int, outputs: Sequence[int]) -> int:
        """Output width, given the input's and that of each body; raise :class:`InvalidValue` where they do not meet."""
        return outputs[-1]


@component
class Model:
    """A transformer as a manifest describes it; :func:`caramba_core.lowering.lower` makes its graph."""

    type: Literal["transformer"] = option(default="transformer", help="the only shape there is so far")
    tied_embeddings: bool = option(default=False, help="the head reads the embedder's matrix")
    embedder: Embedder = option(help="what turns token ids into vectors")
    topology: Topology = option(help="the layers")
    head: Head | None = option(
        default=None, implied=True, help="what turns vectors into logits; the default head if not given"
    )
