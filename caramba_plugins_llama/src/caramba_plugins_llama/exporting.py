"""Writing models for other programs: what an exporter plugin gives, and the shape of model that most of them write.

An exporter is registered in ``caramba.exporter`` as a light class, under the name of the attention that it knows, and
ships with that attention.  It names the formats that it can write, and says what a Hugging Face folder of the model
holds; ``caramba export`` writes the folder, or a GGUF file of the same, and reads it back before it is published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import attrs

from caramba_core.components import Topology
from caramba_core.errors import CarambaError
from caramba_core.graph import Graph, Node
from caramba_core.plugins.registry import registry
from caramba_plugins_llama.families import hugging_face_keys
from caramba_plugins_llama.head_rows import IN_HEADS, rows_in_order
from caramba_plugins_llama.latent_rows import LatentRows

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "CODE",
    "Block",
    "Decoder",
    "ExportError",
    "Exporter",
    "Folder",
    "Original",
    "Part",
    "chain",
    "decoder_of",
    "hugging_face_keys",
    "refuse_export",
    "type_of",
]

CODE: Final = "caramba"
"""The format of folders that bring code along."""

_CHAIN: Final = "caramba_core.nn.sequence:chain"


class ExportError(CarambaError):
    """A model that an exporter cannot express; the message says why."""


@attrs.frozen(kw_only=True)
class Folder:
    """What the folder of an exported model holds.

    ``config`` is the content of ``config.json``; ``keys`` says under which key each parameter of the graph (without
    ``model.``) is written, with ``{}`` for the number of a block (``blocks.{}.mlp.up_proj``); ``files`` are further
    files by name; ``usage`` is how a Python program loads the model, with
    ``{folder}`` for where it lies; the card adds how a tokenizer is loaded, where there is one.  ``rewrite`` makes the
    tensors that are written, where they are others than the graph's: the parameters of the graph that is read back.
    Parameters with one key are written as its rows; ``order`` is the one of rows of queries and keys within a head,
    where the folder has another than the graph.  ``latent`` knows the rows of latent attentions.  A parameter whose key
    is empty is not written: it follows from the configuration.
    """

    config: Mapping[str, Any]
    keys: Mapping[str, str]
    files: Mapping[str, str] = attrs.field(factory=dict)
    usage: str
    rewrite: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None
    order: tuple[int, ...] | None = None
    latent: LatentRows | None = None

    def stored(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of the file by their keys, from parameters by their names."""
        rows: dict[str, dict[str, Tensor]] = {}
        for name, values in tensors.items():
            turned, key = self.order is not None and name.endswith(IN_HEADS), self.key(name)
            if key:
                own = rows.setdefault(key, {})
                own[name.rpartition(".")[2]] = rows_in_order(values, self.order or ()) if turned else values
        return {key: self._below_each_other(parts) for key, parts in rows.items()}

    def _below_each_other(self, parts: Mapping[str, Tensor]) -> Tensor:
        if len(parts) == 1:
            return next(iter(parts.values()))
        if self.latent is not None:
            return self.latent.joined(parts)
        import torch

        return torch.cat(list(parts.values()))

    def key(self, name: str) -> str:
        """The key of a parameter."""
        if name in self.keys:
            return self.keys[name]
        scope, _, rest = name.partition(".")
        index, _, local = rest.partition(".")
        return self.keys[f"{scope}.{{}}.{local}"].replace("{}", index)


@attrs.frozen(kw_only=True)
class Original:
    """A model that is written.

    ``model`` is the manifest's ``model:`` that the graph came from.  ``settings`` is the configuration, in the words of
    ``config.json``, of the checkpoint that the model started from: what a graph does not know (token ids with a
    meaning, the longest context) comes from there; empty if there was none.  ``tensors`` are the parameters by their
    names in the graph (without ``model.``).
    """

    graph: Graph
    model: Mapping[str, Any] = attrs.field(factory=dict)
    settings: Mapping[str, Any] = attrs.field(factory=dict)
    tensors: Mapping[str, Tensor] = attrs.field(factory=dict)


class Exporter(Protocol):
    """The class that an entry of ``caramba.exporter`` names."""

    @classmethod
    def formats(cls) -> tuple[str, ...]:
        """What ``--as`` may name, the one that is written where it names none first.

        ``caramba`` is a folder that brings its own code; any other is named after the architecture of transformers
        whose classes load it: ``llama`` (and those that are like it), ``deepseek_v3``.
        """
        ...

    @classmethod
    def describe(cls, form: str, original: Original) -> Folder:
        """The folder of a model in one of the formats; raises :class:`ExportError` where it cannot be expressed.

        The error says which condition fails, which setting makes it hold, and what that costs.
        """
        ...


# ------------------------------------------------------------------------------------------------ the usual shape


@attrs.frozen(kw_only=True)
class Part:
    """A component in its place: ``type`` is its short name, ``config`` its fields."""

    node: Node
    type: str
    config: Any


@attrs.frozen(kw_only=True)
class Block:
    """``x + attention(norm(x))``, then ``x + mlp(norm_2(x))``."""

    norm: Part
    attention: Part
    norm_2: Part
    mlp: Part


@attrs.frozen(kw_only=True)
class Decoder:
    """A decoder whose blocks are all of that shape, and are named ``blocks.0``, ``blocks.1``, ..."""

    embedder: Part
    blocks: tuple[Block, ...]
    norm: Part
    head: Part
    tied: bool

    def with_attentions(self, change: Callable[[Part], Any]) -> Decoder:
        """The same with other configs of its attentions."""
        blocks = (
            attrs.evolve(block, attention=attrs.evolve(block.attention, config=change(block.attention)))
            for block in self.blocks
        )
        return attrs.evolve(self, blocks=tuple(blocks))


def decoder_of(graph: Graph) -> Decoder:
    """The parts of a decoder; :class:`ExportError` where a model has another shape, saying where."""
    top = list(chain((graph.topology,)))
    if len(top) != 2 or top[0].name != "model.blocks" or type_of(top[0]) != "nested" or top[1].name != "model.norm":
        found = ", ".join(node.name for node in top)
        raise ExportError(f"the model is made of {found}", expected="nested blocks, named blocks, then a norm")
    blocks = []
    for scope in top[0].scopes:
        layers = [_residual(node) for node in chain(scope.nodes)]
        names = [[part.node.name.removeprefix(f"{scope.name}.") for part in parts] for parts in layers]
        if names != [["norm", "attention"], ["norm_2", "mlp"]]:
            raise ExportError(
                f"{scope.name} is made of {names}",
                expected="a residual of norm and attention, then one of norm and mlp",
            )
        (norm, attention), (norm_2, mlp) = layers
        blocks.append(Block(norm=norm, attention=attention, norm_2=norm_2, mlp=mlp))
    return Decoder(
        embedder=_part(graph.embedder),
        blocks=tuple(blocks),
        norm=_part(top[1]),
        head=_part(graph.head),
        tied=graph.tied_embeddings,
    )


def refuse_export(why: str, problems: Mapping[str, Sequence[str]], hint: str | None = None) -> None:
    """Raise :class:`ExportError` for problems by what they say, each with the names of the nodes that have it."""
    if problems:
        others = {problem: f" and {len(names) - 1} more" * (len(names) > 1) for problem, names in problems.items()}
        shown = (f"{names[0]}{others[problem]}: {problem}" for problem, names in problems.items())
        raise ExportError("\n    ".join([why, *shown]), hint=hint)


def chain(nodes: Sequence[Node]) -> Iterator[Node]:
    """The nodes of a chain, lists of layers within it unfolded."""
    for node in nodes:
        if node.inline and isinstance(node.config, Topology) and node.config.inline == _CHAIN:
            yield from chain(node.scopes[0].nodes)
        else:
            yield node


def _residual(node: Node) -> list[Part]:
    if not node.inline or type_of(node) != "residual":
        raise ExportError(f"{node.name} is {type_of(node)}", expected="residuals alone in a block")
    return [_part(inner) for inner in chain(node.scopes[0].nodes)]


def _part(node: Node) -> Part:
    return Part(node=node, type=type_of(node), config=node.config)


def type_of(node: Node) -> str:
    """The short name of a node's component."""
    return registry().name_of(type(node.config))
