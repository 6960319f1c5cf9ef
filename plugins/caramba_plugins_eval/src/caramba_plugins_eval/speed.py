"""What a model takes: time of prefill and of a token, bytes of weights and cache."""

from __future__ import annotations

import time
from statistics import median

import torch
from caramba_plugins_standard.decoding import Decoder
from caramba_plugins_standard.measuring import cache_bytes
from torch import Tensor

from caramba_plugins_eval.metric import Figure
from caramba_plugins_eval.metrics import Latency, Memory
from caramba_plugins_eval.subject import Subject

__all__ = ["latency", "memory"]


def latency(metric: Latency, subject: Subject) -> dict[str, Figure]:
    """Tokens per second of a prompt of each context, and of the tokens that follow it; random tokens, one sequence."""
    found: dict[str, Figure] = {}
    for context in metric.at(subject):
        total = (metric.repeats + 1) * (context + metric.steps)
        prefill, decode = list[float](), list[float]()
        with torch.no_grad(), subject.computing(), subject.reporter.bar(f"{metric.called} {context}", total) as bar:
            tokens = _random_tokens(subject, context + metric.steps)
            decoder = Decoder(subject.model, batch=1, capacity=context + metric.steps, storage=subject.storage)
            for repeat in range(metric.repeats + 1):  # the first warms up: kernels are chosen, steps recorded
                decoder.truncate(0)
                began = _now(subject)
                decoder.prefill(tokens[:, :context])
                between = _now(subject)
                for step in range(context, context + metric.steps):
                    decoder.step(tokens[:, step])
                if repeat:
                    prefill.append(context / (between - began))
                    decode.append(metric.steps / (_now(subject) - between))
                bar.advance(context + metric.steps)
        found[f"prefill.{context}"] = Figure(value=median(prefill), unit="tokens/s")
        found[f"decode.{context}"] = Figure(value=median(decode), unit="tokens/s")
    return found


def memory(metric: Memory, subject: Subject) -> dict[str, Figure]:
    """Bytes of the model's weights, of one sequence's cache and, where the device counts it, of all at its peak."""
    model = subject.model
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    found = {"weights": Figure(value=weights, unit="bytes")}
    dtype = str(model.head_weight.dtype).removeprefix("torch.")
    for context in metric.at(subject):
        per_token, once = cache_bytes(model.graph, context, dtype, subject.storage)
        found[f"cache.{context}"] = Figure(value=per_token * context + once, unit="bytes")
        if subject.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(subject.device)
            with torch.no_grad(), subject.computing():
                tokens = _random_tokens(subject, context)
                decoder = Decoder(model, batch=1, capacity=context, storage=subject.storage)
                decoder.prefill(tokens[:, :-1])
                decoder.step(tokens[:, -1])
            peak = torch.cuda.max_memory_allocated(subject.device)
            found[f"peak.{context}"] = Figure(value=peak, unit="bytes")
    return found


def _random_tokens(subject: Subject, count: int) -> Tensor:
    """Token ids of one sequence, int64 ``[1, T]``."""
    generator = torch.Generator().manual_seed(subject.seed)
    return torch.randint(subject.model.graph.vocab_size, (1, count), generator=generator).to(subject.device)


def _now(subject: Subject) -> float:
    """Seconds, once everything that was asked of the device is done."""
    if subject.device.type != "cpu":
        torch.accelerator.synchronize(subject.device)
    return time.perf_counter()
