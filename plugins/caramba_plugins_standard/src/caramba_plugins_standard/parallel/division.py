"""What each process holds of the models of a training run: all of them, or a part of every weight (FSDP2).

Axes of a mesh: "replicate" are copies of the model, "shard" the processes that hold one copy together.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Protocol, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from caramba_core.errors import InputError
from caramba_core.graph import ROOT, local_name
from caramba_core.nn.build import build
from caramba_core.nn.language_model import LanguageModel
from caramba_core.nn.sequence import LayerSequence
from caramba_core.run.context import RunContext
from caramba_plugins_standard.parallel import Parallel
from caramba_plugins_standard.parallel.shards import divided_as
from caramba_plugins_standard.parallel.team import Team
from caramba_plugins_standard.training.lora import Adapters

__all__ = ["Division", "divided"]

State: TypeAlias = Mapping[str, Any]
Tensors: TypeAlias = Mapping[str, Mapping[str, Tensor]]


class Division(Protocol):
    """How the processes hold the models, and how the gradients of a step become the same in all of them.

    ``saves_copies``: whether what :meth:`save` hands on are copies, which training does not change.
    """

    saves_copies: bool

    def begin(self, parameters: Sequence[nn.Parameter], tables: Sequence[nn.Parameter]) -> None:
        """Once what trains is known; ``tables`` of it are the weights of embedder and head."""
        ...

    def last_pass(self) -> None:
        """The next backward pass is the last of a step: gradients may be exchanged while it runs."""
        ...

    def finish_pass(self) -> None:
        """Behind the backward pass: gradients are means over the processes."""
        ...

    def whole(self) -> Any:
        """A context, entered by all processes, in which the first one can run the student alone."""
        ...

    def restored(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer's state has just been read, in whole, from a checkpoint."""
        ...

    def save(
        self, step: int, *, optimizer: torch.optim.Optimizer, state: State, tensors: Tensors, replace: bool
    ) -> None:
        """:meth:`RunContext.save`, called by all processes: the first one writes whole tensors."""
        ...

    def end(self) -> None:
        """Training is over and saved: the context's models are whole again."""
        ...


def divided(
    context: RunContext,
    team: Team,
    settings: Parallel,
    *,
    uses_teacher: bool,
    whole_model: bool,
    adapters: Adapters | None,
) -> Division:
    """The division that ``parallel:`` asks for, made once the strategy stands and before the optimizer does.

    Without ``whole_model`` steps run the nodes that train by themselves.
    """
    if settings.shards == 1:
        return _Copies(context, team, overlaps=whole_model)
    return _Shards(context, team, settings, uses_teacher=uses_teacher, whole_model=whole_model, adapters=adapters)


class _Copies:
    """Each process holds everything; gradients are averaged while the last backward pass of a step goes on (DDP).

    ``DistributedDataParallel`` itself takes models that are called once a step; here the head runs in chunks, each with
    a backward pass of its own, and blocks of a distillation do.
    """

    saves_copies = False

    def __init__(self, context: RunContext, team: Team, *, overlaps: bool) -> None:
        self._context = context
        self._team = team
        self._overlaps = overlaps
        self._parameters: Sequence[nn.Parameter] = ()
        self._is_last = False
        self._sent: dict[int, tuple[nn.Parameter, dist.Work]] = {}

    def begin(self, parameters: Sequence[nn.Parameter], tables: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        if self._team.size == 1 or not self._overlaps:
            return
        late = {id(parameter) for parameter in tables}  # the head's gradient comes chunk by chunk
        for parameter in parameters:
            if id(parameter) not in late:
                parameter.register_post_accumulate_grad_hook(self._ready)

    def last_pass(self) -> None:
        self._is_last = self._team.size > 1
        self._sent.clear()  # of a pass that failed, as one that could not be compiled

    def _ready(self, parameter: nn.Parameter) -> None:
        if self._is_last:
            assert id(parameter) not in self._sent, "a step's last pass has several backward passes through a weight"
            self._send(parameter)

    def _send(self, parameter: nn.Parameter) -> None:
        assert parameter.grad is not None
        op = dist.ReduceOp.AVG if parameter.grad.is_cuda else dist.ReduceOp.SUM  # gloo has no means
        work = dist.all_reduce(parameter.grad, op, async_op=True)
        assert work is not None
        self._sent[id(parameter)] = parameter, work

    def finish_pass(self) -> None:
        if not self._is_last:
            return
        self._is_last = False
        for parameter in self._parameters:
            if parameter.grad is not None and id(parameter) not in self._sent:
                self._send(parameter)
        for _, work in self._sent.values():
            work.wait()
        sums = [p.grad for p, _ in self._sent.values() if p.grad is not None and not p.grad.is_cuda]
        if sums:
            torch._foreach_div_(sums, float(self._team.size))
        self._sent.clear()

    @contextmanager
    def whole(self) -> Iterator[None]:
        yield

    def restored(self, optimizer: torch.optim.Optimizer) -> None: ...

    def save(
        self, step: int, *, optimizer: torch.optim.Optimizer, state: State, tensors: Tensors, replace: bool
    ) -> None:
        self._context.save(step, optimizer=optimizer, state=state, tensors=tensors, replace=replace)

    def end(self) -> None: ...


class _Shards:
    """Each process holds a part of every weight, of its gradient and of the optimizer's state (FSDP2, HSDP).

    A block's weights are gathered when it runs, in the run's number type; those outside of blocks stay gathered from
    the forward pass to the end of the backward pass, because the head reads them chunk by chunk.
    """

    saves_copies = True

    def __init__(
        self,
        context: RunContext,
        team: Team,
        settings: Parallel,
        *,
        uses_teacher: bool,
        whole_model: bool,
        adapters: Adapters | None,
    ) -> None:
        self._context = context
        self._team = team
        self._student = context.student
        self._adapters = adapters
        if whole_model and adapters is None and context.trained <= {context.graph.head.name}:
            raise InputError(
                f"run {context.run.id}: the head alone trains, and nothing of it is divided among processes",
                hint="set train.parallel.shard: false",
            )
        # layers may return views: nothing here writes into a layer's output, which is what torch warns of
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        mesh = _mesh(context.device, settings)
        narrow = torch.bfloat16 if context.dtype_name == "bfloat16" else None
        policy = MixedPrecisionPolicy(
            param_dtype=narrow, reduce_dtype=None if narrow is None else torch.float32, cast_forward_inputs=False
        )
        if whole_model:
            _shard(self._student, mesh, policy)
        else:  # each trained node has passes of its own, within those of the model; what stays as it is stays whole
            for name in sorted(context.trained):
                node = self._student.get_submodule(local_name(name))
                if any(True for _ in node.parameters()):
                    if node._compiled_call_impl is not None:  # the hooks that gather its weights run around it
                        node._compiled_call_impl = None
                        node.forward = torch.compile(node.forward, fullgraph=True)
                    fully_shard(node, mesh=mesh, mp_policy=policy)
        if uses_teacher:
            _shard(context.teacher, mesh, MixedPrecisionPolicy(cast_forward_inputs=False))
        else:  # each process has its part of what the student shared with it
            self._forget_teacher()

    def begin(self, parameters: Sequence[nn.Parameter], tables: Sequence[nn.Parameter]) -> None: ...
    def last_pass(self) -> None: ...
    def finish_pass(self) -> None: ...

    @contextmanager
    def whole(self) -> Iterator[None]:
        with self._whole_student(self._context.device):
            yield

    def restored(self, optimizer: torch.optim.Optimizer) -> None:
        for parameter, entries in optimizer.state.items():
            for name, value in entries.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    entries[name] = divided_as(value, parameter)

    def save(
        self, step: int, *, optimizer: torch.optim.Optimizer, state: State, tensors: Tensors, replace: bool
    ) -> None:
        cpu = torch.device("cpu")
        with self._whole_student(cpu) as student:
            names = {id(parameter): name for name, parameter in self._student.named_parameters()}
            own = dict(student.named_parameters())
            moments = {
                own[names[id(parameter)]]: {
                    key: self._gathered(value, cpu) if isinstance(value, Tensor) else value
                    for key, value in entries.items()
                }
                for parameter, entries in optimizer.state.items()
            }
            whole: Any = SimpleNamespace(state=moments)
            files = {
                file: {name: self._gathered(tensor, cpu) for name, tensor in held.items()}
                for file, held in tensors.items()
            }
            self._context.save(step, optimizer=whole, state=state, tensors=files, replace=replace)

    @contextmanager
    def _whole_student(self, device: torch.device) -> Iterator[LanguageModel]:
        """The student of the first process as a whole model on a device; all processes give their parts."""
        for part in self._student.modules():
            if isinstance(part, FSDPModule):
                part.reshard()
        parameters = {name: self._gathered(each, device) for name, each in self._student.named_parameters()}
        buffers = dict(self._student.named_buffers())
        if self._team.is_first:
            student = build(self._context.graph, device=device, dtype=self._context.held)
            if self._adapters is not None:
                self._adapters.put_into(student)
            for name, tensor in parameters.items():
                node, _, weight = name.rpartition(".")
                trains = self._student.get_parameter(name).requires_grad
                student.get_submodule(node).register_parameter(weight, nn.Parameter(tensor, requires_grad=trains))
            for name, buffer in student.named_buffers():
                if name in buffers:
                    buffer.copy_(buffers[name])
            self._context.student = student
        try:
            yield self._context.student
        finally:
            self._context.student = self._student

    def _gathered(self, tensor: Tensor, device: torch.device) -> Tensor:
        """A whole tensor in the first process; on the CPU it is a copy, as a checkpoint may be written of it later."""
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        copy = device.type == "cpu" and whole is tensor
        return whole.detach().to(device, copy=copy) if self._team.is_first else tensor

    def end(self) -> None:
        self._context.resume_from = self._context.directory.checkpoint(self._context.step)
        self._context.__dict__.pop("student", None)
        self._forget_teacher()

    def _forget_teacher(self) -> None:
        self._context.shared.forget_teacher()
        self._context.__dict__.pop("teacher", None)


def _mesh(device: torch.device, settings: Parallel) -> DeviceMesh:
    if settings.shards == settings.data:
        return init_device_mesh(device.type, (settings.data,), mesh_dim_names=("shard",))
    sizes = settings.data // settings.shards, settings.shards
    return init_device_mesh(device.type, sizes, mesh_dim_names=("replicate", "shard"))


def _shard(model: LanguageModel, mesh: DeviceMesh, policy: MixedPrecisionPolicy) -> None:
    """Divide a model's weights, each outermost sequence of layers for itself."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 0:
            raise InputError(
                f"{ROOT}.{name} is a single number, which cannot be divided", hint="set parallel.shard: false"
            )
    blocks: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, LayerSequence) and name and not any(name.startswith(f"{outer}.") for outer in blocks):
            blocks[name] = module
    for block in blocks.values():
        fully_shard(block, mesh=mesh, mp_policy=policy)
    outside = MixedPrecisionPolicy(cast_forward_inputs=False)
    fully_shard(model, mesh=mesh, mp_policy=outside, reshard_after_forward=False)
    register_fsdp_forward_method(model, "hidden")
