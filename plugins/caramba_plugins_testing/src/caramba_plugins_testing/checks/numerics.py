"""Numbers: gradients, precision, reproducibility, compilation."""

from __future__ import annotations

import torch
from safetensors.torch import load, save
from torch import Tensor

from caramba_plugins_testing.case import Case, CheckFailed, check, require
from caramba_plugins_testing.subject import Subject, inputs, require_close

__all__ = ["bfloat16_drift", "compilation", "derivatives", "determinism", "gradients", "precision", "round_trip"]

_STEP = 1e-6
"""Half the width of a difference quotient; rounding to float32 is as coarse as a tenth of it."""


@check("gradients are finite and reach the input and every parameter")
def gradients(case: Case) -> None:
    """One backward pass from a random direction."""
    subject = Subject(case, dtype=torch.float32)
    x = inputs(case).float().requires_grad_()
    y = subject.run(x)
    torch.autograd.backward(y, torch.randn(y.shape, generator=torch.Generator().manual_seed(3)))
    for name, tensor in (("the input", x), *subject.parameters()):
        gradient = tensor.grad
        require(tensor.requires_grad, f"{name} does not require a gradient; declare it trainable=False")
        if gradient is None:
            raise CheckFailed(f"no gradient reaches {name}: it takes no part in the output, or is detached")
        require(gradient.isfinite().all(), f"the gradient of {name} is not finite")
        require(gradient.any(), f"the gradient of {name} is zero everywhere")


@check("the gradient is that of the function, computed in float64 where the input is")
def derivatives(case: Case) -> None:
    """Along a random direction: the gradient against the difference quotient.

    A wrong backward pass shows, and so does any cast to a narrower type inside, which makes the function a staircase
    whose steps are wider than the quotient's.
    """
    subject, x, direction = Subject(case), inputs(case), inputs(case, seed=4)
    x.requires_grad_()
    y = subject.run(x)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(y, x, cotangent.to(y.dtype))
    predicted = (gradient.double() * direction).sum().item()
    with torch.no_grad():
        after, before = (subject.run(x + sign * _STEP * direction).double() for sign in (1, -1))
        measured = ((after - before) * cotangent).sum().item() / (2 * _STEP)
        scale = (gradient.double().norm() * direction.norm()).item() / x.numel() ** 0.5
    require(
        abs(predicted - measured) <= 1e-4 * (abs(measured) + scale),
        f"along a random direction the output changes by {measured:.6g}, the gradient says {predicted:.6g}: the "
        "backward pass is wrong, or something is computed in a type narrower than the input's",
    )


@check("float32 agrees with float64, and the output has the type of the input")
@torch.no_grad()
def precision(case: Case) -> None:
    """The same weights and inputs in both; cancellation shows as an error that float32 arithmetic does not have."""
    reference = Subject(case)
    subject = Subject(case, dtype=torch.float32)
    x = inputs(case)
    _copy(reference, subject, torch.float32)
    found, wanted = subject.run(x.float()), reference.run(x.float().double())
    for y, dtype in ((found, torch.float32), (wanted, torch.float64)):
        require(y.dtype == dtype, f"an input in {dtype} gives an output in {y.dtype}")
    require_close(found, wanted, 1e-4, "float32 differs from float64", advice="large terms cancel somewhere")


@check("bfloat16 stays finite and close")
@torch.no_grad()
def bfloat16_drift(case: Case) -> None:
    """The same weights, rounded to bfloat16, computed in bfloat16 and in float64."""
    reference = Subject(case)
    subject = Subject(case, dtype=torch.bfloat16)
    x = inputs(case).bfloat16()
    _copy(reference, subject, torch.bfloat16)
    found, wanted = subject.run(x), reference.run(x.double())
    require(found.dtype == torch.bfloat16, f"an input in bfloat16 gives an output in {found.dtype}")
    drift = ((found.double() - wanted).square().mean() / wanted.square().mean()).sqrt().item()
    require(
        drift <= case.drift,
        f"bfloat16 is off by {drift:.1%} of the output's root mean square (at most {case.drift:.0%}): keep softmax, "
        "norms, states and angles in float32",
    )


def _copy(reference: Subject, subject: Subject, dtype: torch.dtype) -> None:
    """Give both the reference's weights, rounded to ``dtype``."""
    rounded = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in reference.model.state_dict().items()
    }
    subject.model.load_state_dict(rounded)
    reference.model.load_state_dict(rounded)


@check("saved and loaded weights give the same outputs, bit for bit")
@torch.no_grad()
def round_trip(case: Case) -> None:
    """Write every tensor as safetensors and read them into a model with other weights."""
    first, second = Subject(case, dtype=torch.float32), Subject(case, dtype=torch.float32, seed=7)
    state = {name: tensor.contiguous() for name, tensor in first.model.state_dict().items()}
    tensors = all(isinstance(tensor, Tensor) for tensor in state.values())
    require(tensors, "its state holds more than tensors, which checkpoints cannot take")
    second.model.load_state_dict(load(save(state)))
    x = inputs(case).float()
    require(
        torch.equal(first.run(x), second.run(x)),
        "after saving and loading, the outputs differ: something that they depend on is neither a declared weight nor "
        "computed from the config",
    )


@check("the same seed gives the same weights and the same outputs")
def determinism(case: Case) -> None:
    """Build and run twice, in evaluation and in training."""
    first, second = Subject(case, dtype=torch.float32), Subject(case, dtype=torch.float32)
    again = second.model.state_dict()
    for name, tensor in first.model.state_dict().items():
        require(torch.equal(tensor, again[name]), f"two builds from one seed differ in {name}")
    x = inputs(case).float()
    for training in (False, True):
        outputs = []
        for subject in (first, second):
            subject.model.train(training)
            torch.manual_seed(5)
            outputs.append(subject.run(x))
        mode = "training" if training else "evaluation"
        same = torch.equal(*outputs)
        require(same, f"two passes from one seed differ in {mode}: draw from torch's generator only")


@check("torch.compile takes it as one graph")
@torch.no_grad()
def compilation(case: Case) -> None:
    """Compile with ``fullgraph=True`` for two lengths, without a C++ compiler (backend ``eager``)."""
    subject = Subject(case, dtype=torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(subject.run, fullgraph=True, backend="eager")
    try:
        for tokens in (case.tokens, case.tokens + 5):
            x = inputs(case, tokens=tokens).float()
            frame = subject.frame(x)
            try:
                found = compiled(x, frame)
            except torch._dynamo.exc.TorchDynamoException as error:
                reason = str(error).strip().splitlines()[0]
                raise CheckFailed(f"torch.compile(fullgraph=True) breaks its graph: {reason}") from error
            require_close(found, subject.run(x, frame), 1e-5, "its output compiled and not differs")
    finally:
        torch._dynamo.reset()
