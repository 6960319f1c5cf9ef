"""A teacher's weights side by side: the same outputs, one compiled graph, and nothing twice that a student shares."""

from __future__ import annotations

from typing import Any

import torch
from caramba_plugins_standard.gqa import GroupedQueryAttention
from caramba_plugins_standard.layers import LinearHead, RMSNorm, SwiGLU, TokenEmbedder
from caramba_plugins_standard.rope import Rope
from caramba_plugins_standard.topologies import Nested, Residual, Stacked
from caramba_plugins_standard.training.compiling import compile_blocks, join_frozen, uncompile

from caramba_core.components import Model
from caramba_core.lowering import lower
from caramba_core.nn.build import build
from caramba_core.nn.language_model import LanguageModel


def model_of(seed: int) -> LanguageModel:
    attention = GroupedQueryAttention(n_heads=4, n_kv_heads=2, head_dim=8, rope=Rope(theta=100.0))
    layers = (Residual(layers=(RMSNorm(), attention)), Residual(layers=(RMSNorm(), SwiGLU(d_ff=48))))
    embedder = TokenEmbedder(vocab_size=16, d_model=32)
    topology = Stacked(layers=(Nested(name="blocks", repeat=3, layers=layers), RMSNorm()))
    return build(lower(Model(embedder=embedder, topology=topology, head=LinearHead())), seed=seed)


def bytes_held(*models: LanguageModel) -> int:
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for m in models for p in m.parameters()}
    return sum(storages.values())


def test_the_teacher_says_the_same_from_one_compiled_graph() -> None:
    teacher, tokens = model_of(1).requires_grad_(False), torch.arange(14).view(2, 7)
    wanted, held = teacher(tokens), bytes_held(teacher)
    join_frozen(teacher, model_of(2))
    assert bytes_held(teacher) == held
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compile_blocks(teacher, backend=backend)  # type: ignore[arg-type]
    with torch.no_grad():
        torch.testing.assert_close(teacher(tokens), wanted)
    uncompile(teacher)
    (graph,) = graphs
    products = [node for node in graph.graph.nodes if node.target is torch.nn.functional.linear]
    assert len(products) == 4  # queries, keys and values; output; gate and up; down


def test_what_a_student_shares_is_held_once() -> None:
    teacher, student = model_of(1), model_of(1)
    for module, other in zip(student.modules(), teacher.modules(), strict=True):
        for name in [name for name, _ in module.named_parameters(recurse=False) if "o_proj" not in name]:
            setattr(module, name, getattr(other, name))
    held = bytes_held(teacher, student)
    join_frozen(teacher, student)
    assert bytes_held(teacher, student) == held
