"""A teacher's kept log-probabilities: the loss against a plain one, and the file."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from caramba_plugins_standard.parallel import Parallel
from caramba_plugins_standard.training import Training
from caramba_plugins_standard.training.batch import Batch
from caramba_plugins_upcycle.strategies import Global, HiddenStates, KeptLogits
from caramba_plugins_upcycle.strategy_runners import GlobalRunner, divergence
from caramba_plugins_upcycle.teacher_logits import Largest, TeacherLogits, kept_divergence, largest, sequence_keys
from torch import Tensor

from caramba_core.errors import InvalidValue
from caramba_core.lowering import lower
from caramba_core.manifest.structure import structure_model
from caramba_core.nn.build import build
from caramba_core.nn.language_model import LanguageModel


def classes(logits: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """Probabilities of the tokens ``ids``, and of all others together."""
    chosen = (logits / temperature).softmax(-1).gather(-1, ids)
    return torch.cat([chosen, 1 - chosen.sum(-1, keepdim=True)], dim=-1)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("top", [1, 4, 19])
def test_loss_and_gradient(top: int, temperature: float, reverse: bool) -> None:
    generator = torch.Generator().manual_seed(top)
    teacher = 2 * torch.randn(7, 20, generator=generator, dtype=torch.float64)
    student = torch.randn(7, 20, generator=generator, dtype=torch.float64, requires_grad=True)
    reference = student.detach().clone().requires_grad_()
    found = kept_divergence(student, largest(teacher, top, temperature), temperature, reverse=reverse)
    found.sum().backward()

    ids = teacher.topk(top).indices
    p, q = classes(teacher, ids, temperature), classes(reference, ids, temperature)
    p, q = (q, p) if reverse else (p, q)
    wanted = (p * (p.log() - q.log())).sum(-1) * temperature**2
    wanted.sum().backward()
    torch.testing.assert_close(found, wanted, rtol=3e-3, atol=3e-3)  # log-probabilities are kept in float16
    torch.testing.assert_close(student.grad, reference.grad, rtol=3e-3, atol=3e-3)
    one, other = (teacher, reference.detach()) if reverse else (reference.detach(), teacher)
    whole = divergence(one, other, temperature)
    assert bool((found <= whole + 3e-3).all())
    if top == 19:  # the rest is one token: nothing is put together
        torch.testing.assert_close(found, whole, rtol=3e-3, atol=3e-3)


def kept_of(seed: int, *, sequences: int = 2, tokens: int = 5, top: int = 3, vocabulary: int = 50) -> Largest:
    generator = torch.Generator().manual_seed(seed)
    return largest(torch.randn(sequences * tokens, vocabulary, generator=generator), top, 1.0)


def opened(folder: Path, *, vocabulary: int = 50, **identity: Any) -> TeacherLogits:
    return TeacherLogits(folder, KeptLogits(top=3), tokens=5, vocabulary=vocabulary, identity=identity)


@pytest.mark.parametrize("vocabulary", [50, 70_000])
def test_what_is_written_is_read(tmp_path: Path, vocabulary: int) -> None:
    keys = sequence_keys(torch.arange(10).view(2, 5), None)
    kept, device = kept_of(1, vocabulary=vocabulary), torch.device("cpu")
    file = opened(tmp_path / "a", vocabulary=vocabulary)
    assert file.read(keys, device) is None
    file.write(keys, kept)
    again = opened(tmp_path / "a", vocabulary=vocabulary).read(keys[::-1], device)
    assert again is not None
    for one, other in zip(kept, again, strict=True):
        assert torch.equal(one.view(2, 5, -1).flip(0).flatten(0, 1), other.view(10, -1))
    size = (tmp_path / "a" / "records.bin").stat().st_size
    assert size == 2 * (20 + 5 * KeptLogits(top=3).bytes_per_token(vocabulary))


def test_what_is_torn_or_damaged_is_not_read(tmp_path: Path) -> None:
    keys, kept, device = sequence_keys(torch.arange(10).view(2, 5), None), kept_of(1), torch.device("cpu")
    opened(tmp_path, teacher="a").write(keys, kept)
    path = tmp_path / "records.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    file = opened(tmp_path, teacher="a")
    assert file.read(keys[:1], device) is not None
    assert file.read(keys, device) is None
    file.write(keys, kept)
    assert path.read_bytes() == whole
    path.write_bytes(whole[:30] + b"?" + whole[31:])
    file = opened(tmp_path, teacher="a")
    assert file.read(keys[:1], device) is None
    file.write(keys, kept)
    assert path.read_bytes() == whole
    assert opened(tmp_path, teacher="b").read(keys, device) is None  # of another teacher
    assert not path.read_bytes()


def test_names_of_sequences() -> None:
    tokens = torch.tensor([[1, 2, 3], [1, 2, 4], [1, 2, 3]])
    begins = torch.tensor([[True, False, False], [True, False, False], [True, True, False]])
    plain, marked = sequence_keys(tokens, None), sequence_keys(tokens, begins)
    assert plain[0] == plain[2] != plain[1]
    assert len({*plain, *marked}) == 5


def model_of(seed: int) -> LanguageModel:
    attention = {"type": "gqa", "n_heads": 4, "n_kv_heads": 2, "head_dim": 6, "rope": {"theta": 100.0}}
    layers = [{"type": "residual", "layers": [{"type": "rms_norm"}, attention]}, {"type": "rms_norm"}]
    config = {
        "embedder": {"type": "token", "vocab_size": 30, "d_model": 24},
        "topology": {"type": "stacked", "layers": layers},
    }
    return build(lower(structure_model(config)), seed=seed)


def test_later_epochs_need_no_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = model_of(1), model_of(2).requires_grad_(False)
    context: Any = SimpleNamespace(
        student=student,
        teacher=teacher,
        autocast=nullcontext,
        run=SimpleNamespace(compiles=False, computation=("cpu", "float32")),
        shared=SimpleNamespace(inputs=lambda run: {"teacher in float32": "abc", "train": "def"}),
        directory=SimpleNamespace(path=tmp_path),
    )
    tokens = torch.randint(0, 30, (4, 8), generator=torch.Generator().manual_seed(3))
    config = Global(keep_logits=KeptLogits(top=5), cross_entropy=0.5, logit_rows=5)

    def steps(*batches: list[int]) -> list[Any]:
        runner, found = GlobalRunner(config, context), []
        runner.prepare()
        for rows in batches:
            student.zero_grad()
            result = runner.step(Batch(tokens=tokens[rows]))
            found.append((result.loss, [parameter.grad for parameter in student.parameters()]))
        return found

    first = steps([0, 1], [2, 3])
    monkeypatch.setattr(teacher, "hidden", None)  # which it is not asked for any more
    again = steps([0, 1], [2, 3], [3, 0])  # by a process that goes on
    for one, other in zip(first, again, strict=False):
        assert torch.equal(one[0], other[0])
        assert all(torch.equal(a, b) for a, b in zip(one[1], other[1], strict=True))

    monkeypatch.undo()
    inputs, targets = tokens[[3, 0], :-1], tokens[[3, 0], 1:].flatten()
    logits, wanted = student(inputs).flatten(0, 1), teacher(inputs).flatten(0, 1)
    ids = wanted.topk(5).indices
    p, q = classes(wanted, ids, 1.0), classes(logits, ids, 1.0)
    loss = (p * (p.log() - q.log())).sum(-1).mean() + 0.5 * torch.nn.functional.cross_entropy(logits, targets)
    torch.testing.assert_close(again[2][0], loss.detach(), rtol=1e-3, atol=1e-4)
    student.zero_grad()
    loss.backward()
    for parameter, found in zip(student.parameters(), again[2][1], strict=True):
        torch.testing.assert_close(found, parameter.grad, rtol=2e-3, atol=1e-4)


def test_what_does_not_go_together() -> None:
    with pytest.raises(InvalidValue, match="need the teacher in every epoch"):
        Global(keep_logits=KeptLogits(), hidden=HiddenStates())
    with pytest.raises(InvalidValue, match="30 of 30 tokens leaves no rest"):
        Global(keep_logits=KeptLogits(top=30)).check(model_of(1).graph, [], frozenset())
    with pytest.raises(InvalidValue, match="several processes"):
        Training(strategy=Global(keep_logits=KeptLogits()), lr=1.0e-3, parallel=Parallel(data=2))
