"""SmolLM2-135M itself as the teacher: E1, E3 and E5 of the ladder on the logits of the whole model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
import torch.nn.functional as F
from caramba_plugins_dba.attention import DecoupledBottleneckAttention
from caramba_plugins_dba.transplant import GQAToDBA
from caramba_plugins_llama.gguf_file import GgufFile
from caramba_plugins_standard.generation import generate
from caramba_plugins_standard.loading import PretrainedModel
from caramba_plugins_upcycle.calibration import Calibration
from caramba_plugins_upcycle.modes import Start
from torch import Tensor

from caramba_core.components import Attention
from caramba_core.graph import Graph, Node
from caramba_core.lowering import lower
from caramba_core.manifest.structure import structure_model
from caramba_core.nn.frame import Frame
from caramba_core.nn.language_model import LanguageModel
from caramba_core.run.student import assemble
from caramba_core.sites import find_sites

pytestmark = pytest.mark.real_model

ROOT = Path(__file__).parents[2]
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTEXT = 1024


@pytest.fixture(scope="module", autouse=True)
def no_gradients() -> Any:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def checkpoint() -> GgufFile:
    path = ROOT / os.environ.get("CARAMBA_WEIGHTS", ".demo") / NAME
    if not path.is_file():
        pytest.skip(f"{path} is not there; make weights fetches it")
    return GgufFile.open(path)


@pytest.fixture(scope="module")
def teacher(checkpoint: GgufFile) -> LanguageModel:
    graph = lower(structure_model(checkpoint.model(), origin=str(checkpoint.path)))
    return PretrainedModel(checkpoint, graph, str(checkpoint.path)).load(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def tokens(checkpoint: GgufFile) -> Tensor:
    """Windows of the demonstration's text: ``[4, 1024]``."""
    tokenizer = checkpoint.tokenizer()
    assert tokenizer is not None
    ids = tokenizer.encode((ROOT / "demo" / "addresses.txt").read_text()[-30000:])
    return torch.tensor(ids[: 4 * CONTEXT]).view(4, CONTEXT)


def converted(teacher: LanguageModel, tokens: Tensor, selection: str = "rotation", **sizes: Any) -> LanguageModel:
    """A student whose every attention is a DBA in closed form; nothing is refitted."""

    def visit(node: Node) -> Node:
        scopes = tuple(attrs.evolve(scope, nodes=tuple(map(visit, scope.nodes))) for scope in node.scopes)
        config: Any = node.config
        if isinstance(config, Attention):
            shared = {name: getattr(config, name) for name in ("n_heads", "n_kv_heads", "head_dim", "rope")}
            config = DecoupledBottleneckAttention(**{**shared, **sizes})
        return attrs.evolve(node, scopes=scopes, config=config)

    graph: Graph = attrs.evolve(teacher.graph, topology=visit(teacher.graph.topology))
    device = torch.device("cpu")
    student = assemble(graph, teacher=teacher, tensors=None, trained=(), device=device, dtype=torch.float32, seed=0)
    settings = Start(transplant=GQAToDBA(selection=selection), refit=False)  # type: ignore[arg-type]
    sites = find_sites(teacher.graph, graph)
    Calibration(teacher=teacher, student=student.eval(), sites=sites, settings=settings).run([tokens])
    return student


SERVABLE = {"layout": "servable", "geo_layout": "shared"}


@pytest.fixture(scope="module", params=[{}, SERVABLE], ids=["free", "servable"])
def all_rotary(teacher: LanguageModel, tokens: Tensor, request: pytest.FixtureRequest) -> LanguageModel:
    return converted(teacher, tokens[:1, :64], sem_dim=0, geo_dim=192, v_dim=192, **request.param)


@pytest.fixture(scope="module")
def teachers_logits(teacher: LanguageModel, tokens: Tensor) -> Tensor:
    return logits(teacher, tokens[1:2, :192])


def logits(model: LanguageModel, tokens: Tensor) -> Tensor:
    scores: Tensor = model(tokens)
    return scores


def log_perplexity(model: LanguageModel, tokens: Tensor) -> float:
    scores = logits(model, tokens[:, :-1])
    return float(F.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten()))


def test_e1_all_pairs_rotary_give_the_teachers_logits(
    all_rotary: LanguageModel, tokens: Tensor, teachers_logits: Tensor
) -> None:
    ours = logits(all_rotary, tokens[1:2, : teachers_logits.shape[1]])
    assert (ours - teachers_logits).abs().max() <= 1e-5 * teachers_logits.abs().max()


def test_e1_and_e5_greedy_tokens_through_the_cache_are_the_teachers(
    all_rotary: LanguageModel, teacher: LanguageModel, tokens: Tensor
) -> None:
    """After each prefix of our continuation the teacher chooses our next token, so its own continuation is ours."""
    ours = generate(all_rotary, tokens[2:3, :100], 40)
    assert ours.shape == (1, 140)
    chosen = logits(teacher, ours).argmax(dim=-1)
    assert torch.equal(ours[:, 100:], chosen[:, 99:-1])


@pytest.mark.parametrize(
    "sizes",
    [{"sem_dim": 36, "geo_dim": 72, "v_dim": 84}, {"sem_dim": 24, "geo_dim": 72, "v_dim": 96, **SERVABLE}],
    ids=["free", "servable"],
)
def test_e5_cached_decoding_is_the_full_forward_of_a_compressed_model(
    teacher: LanguageModel, tokens: Tensor, sizes: dict[str, Any]
) -> None:
    student = converted(teacher, tokens[:1, :64], o_bias=True, **sizes)
    text = tokens[3:4, :48]
    full = logits(student, text)
    cache = student.new_cache(1)
    parts = [student(part, Frame.of(part, cache=cache)) for part in text.split([28, 1, 14, 5], dim=1)]
    assert (torch.cat(parts, dim=1) - full).abs().max() <= 1e-5 * full.abs().max()


@pytest.mark.slow
def test_e3_pairs_that_hardly_turn_lose_nothing_without_positions(teacher: LanguageModel, tokens: Tensor) -> None:
    """The 8 of 32 pairs that turn by less than a quarter radian over 1,024 tokens, moved at full rank."""
    attention: Any = next(iter(teacher.graph.attentions().values())).config
    slow = [f for f in attention.rope.frequencies(64) if f * CONTEXT < 0.25]
    assert len(slow) == 8
    student = converted(teacher, tokens[:1, :256], "frequency", sem_dim=48, geo_dim=144, v_dim=192)
    lost = log_perplexity(student, tokens[1:2]) - log_perplexity(teacher, tokens[1:2])
    assert 0 < abs(lost) <= 0.01
