"""What weighs the branches of a ``branching`` node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from caramba_core.component import Cost, Normal, Router, Shape, Weight, component, option
from caramba_core.errors import InvalidValue

__all__ = ["SoftmaxRouter", "TopKRouter"]


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
