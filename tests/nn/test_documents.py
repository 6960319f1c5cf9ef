"""Documents that share a sequence: logits, losses and gradients are those of each document alone."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from caramba_plugins_dba.attention import DecoupledBottleneckAttention
from caramba_plugins_linear.attention import LinearAttention
from caramba_plugins_mla.attention import MultiHeadLatentAttention
from caramba_plugins_sliding_window.attention import SlidingWindowAttention
from caramba_plugins_standard.arrays import ArrayTokens, Shard
from caramba_plugins_standard.gqa import GroupedQueryAttention
from caramba_plugins_standard.layers import LinearHead, RMSNorm, TokenEmbedder
from caramba_plugins_standard.marks import BEGINS
from caramba_plugins_standard.pretrain import Pretrain
from caramba_plugins_standard.pretrain_runner import PretrainRunner
from caramba_plugins_standard.rope import Rope
from caramba_plugins_standard.topologies import Residual, Stacked
from caramba_plugins_standard.training.batch import Batch, batches_of
from caramba_plugins_standard.training.documents import packed_frame
from caramba_plugins_upcycle.strategies import Blockwise, Global
from caramba_plugins_upcycle.strategy_runners import BlockwiseRunner, GlobalRunner, divergence
from torch.nn import functional as F

from caramba_core.components import Attention, Model
from caramba_core.errors import InputError
from caramba_core.graph import local_name
from caramba_core.lowering import lower
from caramba_core.nn.build import build
from caramba_core.nn.frame import Frame, Taps
from caramba_core.nn.language_model import LanguageModel

END = 0
HEADS: dict[str, Any] = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 8}
ROPE = Rope(theta=100.0)
DBA: dict[str, Any] = {**HEADS, "sem_dim": 8, "geo_dim": 16, "v_dim": 12, "rope": ROPE}
ATTENTIONS: dict[str, Attention] = {
    "gqa": GroupedQueryAttention(**HEADS, rope=ROPE),
    "gqa with a window": GroupedQueryAttention(**HEADS, rope=ROPE, window=5),
    "dba": DecoupledBottleneckAttention(**DBA),
    "dba with a window": DecoupledBottleneckAttention(**DBA, window=5),
    "dba with null attention": DecoupledBottleneckAttention(**DBA, null=True),
    "dba with a joint latent": DecoupledBottleneckAttention(**{**DBA, "sem_dim": 0, "geo_dim": 8}, latent="joint"),
    "mla": MultiHeadLatentAttention(**HEADS, rank=12, rope_dim=4, rope=ROPE),
    "sliding window": SlidingWindowAttention(**HEADS, window=4, sinks=2, rope=ROPE, sink_positions="text"),
    "sliding window with near sinks": SlidingWindowAttention(**HEADS, window=4, sinks=2, rope=ROPE),
}
DOCUMENTS = [[5, 3, 9, END], [END], [7, 2, 2, 8, 4, 6, 1, 3, 9, 5, 11, 12, END], [3, 1, END], [8, 8, 2, 4, 15, 6, 10]]
"""Each ends with END, but the last, which a window cuts off; one is empty."""


def model_of(attention: Attention) -> LanguageModel:
    layers = (Residual(layers=(RMSNorm(), attention)), Residual(layers=(RMSNorm(), attention)), RMSNorm())
    model = build(
        lower(
            Model(embedder=TokenEmbedder(vocab_size=16, d_model=32), topology=Stacked(layers=layers), head=LinearHead())
        ),
        seed=1,
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def packed() -> torch.Tensor:
    """The documents in two orders, int64 ``[2, T + 1]``."""
    rows = [[id_ for document in documents for id_ in document] for documents in (DOCUMENTS, DOCUMENTS[::-1])]
    return torch.tensor(rows)


def batch_of(tokens: torch.Tensor) -> Batch:
    """The documents of ``tokens`` as a training step gets them, with the marks that a token array gives."""
    marked = tokens.clone()
    marked[:, 1:][tokens[:, :-1] == END] |= BEGINS
    [batch] = batches_of(marked[None], marked=True)
    return batch


def alone(tokens: torch.Tensor) -> list[list[int]]:
    """The documents of the rows of ``tokens``."""
    found: list[list[int]] = []
    for row in tokens.tolist():
        found.append([])
        for place, id_ in enumerate(row):
            found[-1].append(id_)
            if id_ == END and place + 1 < len(row):
                found.append([])
    return found


@pytest.mark.parametrize("name", ATTENTIONS)
def test_logits_are_those_of_each_document_alone(name: str) -> None:
    model, tokens = model_of(ATTENTIONS[name]), packed()
    inputs, batch = tokens[:, :-1], batch_of(tokens)
    logits = model(inputs, batch.frame(model)).flatten(0, 1)
    wanted = torch.cat([model(torch.tensor([document]))[0] for document in alone(inputs)])
    torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)
    assert (model(inputs).flatten(0, 1) - wanted).abs().max() > 0.01, "without documents they differ"


@pytest.mark.parametrize("rows", [7, 512])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_a_training_step_is_that_of_the_documents_alone(name: str, rows: int) -> None:
    """Loss and gradients of the strategy, against losses of documents one by one; no token ends one and begins one."""
    model, tokens = model_of(ATTENTIONS[name]), packed()
    context: Any = SimpleNamespace(student=model, autocast=nullcontext, run=SimpleNamespace(compiles=False))
    runner = PretrainRunner(Pretrain(logit_rows=rows), context)
    runner.prepare()
    loss = runner.step(batch_of(tokens)).loss
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    losses = [
        F.cross_entropy(model(torch.tensor([document[:-1]]))[0], torch.tensor(document[1:]), reduction="sum")
        for document in alone(tokens)
        if len(document) > 1
    ]
    labels = sum(len(document) - 1 for document in alone(tokens))
    wanted = torch.stack(losses).sum() / labels
    wanted.backward()
    torch.testing.assert_close(loss, wanted.detach(), rtol=1e-5, atol=1e-6)
    assert len(found) == len(list(model.parameters()))
    for name_of, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert (found[name_of] - parameter.grad).abs().max() <= 1e-5 * parameter.grad.abs().max(), name_of


def test_no_target_stands_in_another_document(tmp_path: Path) -> None:
    ids = np.array([4, 5, END, 6, END, END, 7])
    np.save(tmp_path / "a.npy", ids)
    data = ArrayTokens.of([Shard.of(tmp_path / "a.npy")], tokenizer=None, origin="a", separator=END)
    words = torch.from_numpy(data.marked(0, 7))[None, None]
    [batch] = batches_of(words, marked=True)
    assert batch.tokens.tolist() == [ids.tolist()]
    assert batch.targets.tolist() == [[5, END, -100, END, -100, -100]]
    [plain] = batches_of(torch.from_numpy(data.read(0, 7))[None, None], marked=False)
    assert plain.targets.tolist() == [[5, END, 6, END, END, 7]]
    assert batch.frame(model_of(ATTENTIONS["gqa"])).positions.tolist() == [[0, 1, 2, 0, 1, 0]]


def test_an_attention_that_cannot_is_refused() -> None:
    model, tokens = model_of(LinearAttention(**HEADS, features=8)), packed()
    with pytest.raises(InputError, match=r"attention \(LinearAttention\) cannot keep documents of one sequence apart"):
        batch_of(tokens).frame(model)
    plain = Batch(tokens=tokens)
    assert model(plain.inputs, plain.frame(model)).shape == (*plain.inputs.shape, 16)


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_a_step_waits_for_no_value(name: str, blocks: bool) -> None:
    """On a device that has shapes but no values: so that a step over documents can be recorded as a CUDA graph."""
    model, tokens = model_of(ATTENTIONS[name]).to("meta"), packed()
    words = tokens.clone()
    words[:, 1:][tokens[:, :-1] == END] |= BEGINS
    [batch] = batches_of(words[None].to("meta"), marked=True)
    if blocks:  # as they are made on CUDA
        assert batch.begins is not None
        packed_frame(model, batch.inputs, batch.begins[:, :-1], in_blocks=True)
    logits = model(batch.inputs, batch.frame(model)).flatten(0, 1)
    batch.mean(F.cross_entropy(logits, batch.targets.flatten(), reduction="sum")).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("rows", [5, 512])
def test_distillation_is_that_of_the_documents_alone(rows: int) -> None:
    """Of logits with cross entropy, and of attentions."""
    student, teacher = (model_of(ATTENTIONS[name]) for name in ("dba", "gqa"))
    context: Any = SimpleNamespace(
        student=student,
        teacher=teacher,
        autocast=nullcontext,
        run=SimpleNamespace(compiles=False),
        sites=tuple(SimpleNamespace(name=name) for name in student.graph.attentions()),
        trained=frozenset(student.graph.attentions()),
    )
    runner = GlobalRunner(Global(logit_rows=rows, cross_entropy=0.5), context)
    runner.prepare()
    tokens = packed()
    found = runner.step(batch_of(tokens))
    kl, cross_entropy = torch.zeros(()), torch.zeros(())
    documents = alone(tokens)
    for document in documents:
        if len(document) > 1:
            ours, theirs = (model(torch.tensor([document[:-1]]))[0].detach() for model in (student, teacher))
            kl += divergence(ours, theirs, runner.config.temperature).sum()
            cross_entropy += F.cross_entropy(ours, torch.tensor(document[1:]), reduction="sum")
    labels = sum(len(document) - 1 for document in documents)
    torch.testing.assert_close(found.metrics["kl"], kl / labels, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.metrics["cross_entropy"], cross_entropy / labels, rtol=1e-5, atol=1e-6)

    blockwise = BlockwiseRunner(Blockwise(), context)
    blockwise.prepare()
    block = blockwise.step(batch_of(tokens))
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    learners = [student.get_submodule(local_name(name)) for name in student.graph.attentions()]
    errors, energies = [torch.zeros(()) for _ in learners], [torch.zeros(()) for _ in learners]
    for document in alone(tokens[:, :-1]):
        pairs.clear()
        inputs = torch.tensor([document])
        with torch.no_grad():
            teacher.hidden(inputs, Frame.of(inputs, taps=Taps(lambda _, x, y: pairs.append((x, y)))))
            for index, (x, y) in enumerate(pairs):
                errors[index] += (learners[index](x, Frame.of(inputs)) - y).square().sum()
                energies[index] += y.square().sum()
    wanted = torch.stack([error / energy for error, energy in zip(errors, energies, strict=True)])
    torch.testing.assert_close(block.loss, wanted.mean(), rtol=1e-5, atol=1e-6)
