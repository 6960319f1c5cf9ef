"""What a model and its runs will take, in closed form from what components declare, before anything is built.

No torch, no numpy: :func:`plan_manifest` reads declared weights, costs and caches off the graph, and the headers of a
teacher that is on this machine.
"""

from caramba_core.plan.nodes import Figures, ModelPlan, NodePlan, ScopePlan, plan_model
from caramba_core.plan.planning import Plan, longest_context, plan_manifest
from caramba_core.plan.runs import Memory, RunPlan

__all__ = [
    "Figures",
    "Memory",
    "ModelPlan",
    "NodePlan",
    "Plan",
    "RunPlan",
    "ScopePlan",
    "longest_context",
    "plan_manifest",
    "plan_model",
]
