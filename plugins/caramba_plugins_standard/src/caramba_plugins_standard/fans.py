"""Topologies whose branches all read the same input, and the routers that weigh branches: the kind ``router``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from caramba_core.components import Body, Component, Cost, Layer, Normal, Shape, Topology, Weight, component, option
from caramba_core.errors import InvalidValue

__all__ = ["Branching", "Parallel", "Router", "SoftmaxRouter", "TopKRouter"]


@component
class Router(Component):
    """Weighs the branches of a topology for each token.

    ``builds`` is a function ``(config, x, weights) -> y`` from ``x`` ``[B, T, D]`` and the declared weights to ``y``
    ``[B, T, branches]``.
    """

    kind: ClassVar[str] = "router"

    def check(self, branches: int) -> None:
        """Raise :class:`InvalidValue` where the config cannot weigh so many branches."""

    def weights(self, width: int, branches: int) -> Mapping[str, Weight]:
        """The tensors that the router needs; the node owns them as ``router_<name>``."""
        return {}

    def cost(self, width: int, branches: int, shape: Shape) -> Cost:
        """What one pass takes."""
        return Cost()


@component
class SoftmaxRouter(Router):
    """Weighs every branch: ``softmax(x weight^T)``."""

    builds: ClassVar[str] = "caramba_plugins_standard.topology_modules:softmax"

    init_std: float = option(default=0.02, help="standard deviation of the initial weights", above=0.0)

    def weights(self, width: int, branches: int) -> Mapping[str, Weight]:
        """``weight`` ``[branches, D]``."""
        return {"weight": Weight(shape=(branches, width), init=Normal(self.init_std))}

    def cost(self, width: int, branches: int, shape: Shape) -> Cost:
        """One product; its input stays (the softmax is what the branching node multiplies with)."""
        return Cost.product(shape.rows, width, branches, saved=shape.rows * width)


@component
class TopKRouter(SoftmaxRouter):
    """Chooses ``k`` branches a token and weighs them by the softmax of their scores; the others get 0."""

    builds: ClassVar[str] = "caramba_plugins_standard.topology_modules:top_k"

    k: int = option(default=1, help="branches that a token uses", minimum=1)

    def check(self, branches: int) -> None:
        """``k`` is at most the number of branches."""
        if self.k > branches:
            raise InvalidValue("k", f"{self.k} is above the number of branches", expected=f"at most {branches}")


@component
class _Fan(Topology):
    """Base of topologies whose layers are branches of one input."""

    flow: ClassVar[Literal["chain", "fan"]] = "fan"

    layers: tuple[Layer, ...] = option(help="the branches; a chain of several layers is one stacked layer")

    def __attrs_post_init__(self) -> None:
        if not self.layers:
            raise InvalidValue("layers", "is empty", expected="at least one branch")

    def bodies(self) -> Sequence[Body]:
        """One body a branch, named by its index."""
        return tuple(Body(layers=(layer,), name=str(index)) for index, layer in enumerate(self.layers))

    def join(self, width: int, outputs: Sequence[int]) -> int:
        """The branches' common width."""
        for index, output in enumerate(outputs):
            if output != outputs[0]:
                raise InvalidValue(
                    "layers",
                    f"branch {index} has width {output}, branch 0 has {outputs[0]}",
                    expected="branches of one width",
                    hint="end a branch with a linear layer, or use parallel with combine: concatenate",
                )
        return outputs[0]


@component
class Parallel(_Fan):
    """Branches of one input, combined by sum, mean, or concatenation on the feature axis and a projection."""

    role: ClassVar[str] = "parallel"
    builds: ClassVar[str] = "caramba_plugins_standard.topology_modules:ParallelModule"

    combine: Literal["sum", "mean", "concatenate"] = option(
        default="sum", help="how outputs become one", choices=("sum", "mean", "concatenate")
    )
    d_out: int | None = option(
        default=None, help="width after concatenation; the input's if not given", unit="features", minimum=1
    )
    init_std: float = option(default=0.02, help="standard deviation of the initial projection", above=0.0)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.d_out is not None and self.combine != "concatenate":
            raise InvalidValue("d_out", f"has no meaning with combine: {self.combine}")

    def join(self, width: int, outputs: Sequence[int]) -> int:
        """The branches' common width, or the projection's."""
        if self.combine != "concatenate":
            return super().join(width, outputs)
        return width if self.d_out is None else self.d_out

    def weights(self, width: int) -> Mapping[str, Weight]:
        """``out_proj`` ``[d_out, sum of the branches' widths]`` where they are concatenated."""
        if self.combine != "concatenate":
            return {}
        outputs = self.output_widths(width)
        return {"out_proj": Weight(shape=(self.join(width, outputs), sum(outputs)), init=Normal(self.init_std))}

    def cost(self, width: int, shape: Shape) -> Cost:
        """The projection, whose input stays; sums and means keep nothing."""
        if self.combine != "concatenate":
            return Cost()
        outputs = self.output_widths(width)
        rows = shape.rows
        return Cost.product(rows, sum(outputs), self.join(width, outputs), saved=rows * sum(outputs))


@component
class Branching(_Fan):
    """``sum_j w_j(x) f_j(x)``: a router weighs the branches, a token at a time.

    Every branch runs on every token, also where the router gives it no weight, because branches may mix tokens.
    """

    role: ClassVar[str] = "branching"
    builds: ClassVar[str] = "caramba_plugins_standard.topology_modules:BranchingModule"

    router: Router = option(help="what weighs the branches")

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        try:
            self.router.check(len(self.layers))
        except InvalidValue as error:
            raise InvalidValue("router", str(error), expected=error.expected, hint=error.hint) from error

    def weights(self, width: int) -> Mapping[str, Weight]:
        """The router's, as ``router_<name>``."""
        return {f"router_{name}": weight for name, weight in self.router.weights(width, len(self.layers)).items()}

    def cost(self, width: int, shape: Shape) -> Cost:
        """The router; the branches' outputs and their weights stay."""
        branches = len(self.layers)
        kept = shape.rows * (sum(self.output_widths(width)) + branches)
        return self.router.cost(width, branches, shape) + Cost(saved=kept)
