"""What weighs the branches of a ``branching`` node: the kind ``router``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from caramba_core.component import Component, Cost, Normal, Shape, Weight, component, option
from caramba_core.errors import InvalidValue

__all__ = ["Router", "SoftmaxRouter", "TopKRouter"]


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

    builds: ClassVar[str] = "caramba_plugins_standard.router_functions:softmax"

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

    builds: ClassVar[str] = "caramba_plugins_standard.router_functions:top_k"

    k: int = option(default=1, help="branches that a token uses", minimum=1)

    def check(self, branches: int) -> None:
        """``k`` is at most the number of branches."""
        if self.k > branches:
            raise InvalidValue("k", f"{self.k} is above the number of branches", expected=f"at most {branches}")
