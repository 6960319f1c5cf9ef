"""All weights of a DBA from a teacher's weights and moments.

Axes: D width of the residual stream, H query heads, G key/value heads, d head width, P = d/2 pairs, n kept pairs,
k = 2 (P - n) moved dimensions of one key/value head, K = G k of all.  A part of the keys or values belongs to F
consecutive key/value heads: one of them, those of a group, or all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from caramba_plugins_upcycle.shared_rotary import Shared, choose, dearness
from caramba_plugins_upcycle.threads import one_thread
from caramba_plugins_upcycle.transplant import Calibrated, Started
from torch import Tensor

from caramba_core.components import Attention
from caramba_plugins_dba.attention import DecoupledBottleneckAttention
from caramba_plugins_dba.start.case import StartCase
from caramba_plugins_dba.start.joint import of_joint_latent
from caramba_plugins_dba.start.linear_algebra import basis, block_diagonal
from caramba_plugins_dba.start.rotation import Rotation
from caramba_plugins_dba.start.selection import select

__all__ = ["common_pairs", "geometric", "rotary_costs", "rotary_part", "start"]

Moments = Mapping[str, Mapping[str, Tensor]]


@one_thread()
def start(case: StartCase) -> Started:
    """The weights that the target declares, in float64, and what each step left out."""
    source, target = case.source, case.target
    rotary, moved = rotary_part(case)
    if target.latent == "joint":
        made, offset = of_joint_latent(case, moved[0])
        made |= _behind_latent(case, offset)
    else:
        made = {**_semantic(case, moved), **_values(case)}
    made |= {**rotary, **_neutral(target, source.width)}
    declared = target.weights(source.width)
    assert set(declared) == set(made), f"{sorted(set(declared) ^ set(made))}"
    return Started(weights=made, report=case.report)


def rotary_part(case: StartCase) -> tuple[dict[str, Tensor], list[Moved]]:
    """The rotary path, and what it leaves of each part of the keys."""
    if case.target.geo_layout == "shared" and case.target.pairs:
        keys = _shared_keys(case)
        return _of_shared_keys(case, keys), [_rest(key) for key in keys]
    chosen = _choose_pairs(case)
    return geometric(case.source, case.target, chosen), _others(case.target, chosen)


def rotary_costs(case: StartCase) -> Tensor:
    """What it costs to lose the rotation of each thing that a rotary key may keep, dearest first.

    ``[P]``: a pair of each key/value head together, or ``[G P]``: the components that all heads share.
    """
    if case.target.geo_layout == "shared":
        return dearness(*_of_group(case.target, case.moments, case.rotation, 0)).flatten().sort(descending=True).values
    return case.rotation.costs(case.moments, case.selection).sort(dim=-1, descending=True).values.sum(0)


def _choose_pairs(case: StartCase) -> Tensor:
    if not case.target.pairs:
        return torch.zeros(case.target.n_kv_heads, 0, dtype=torch.int64)
    cost = case.rotation.costs(case.moments, case.selection)
    pairs = select(cost, case.target.pairs)
    case.report["pairs"] = pairs.tolist()
    case.report["rotation_lost"] = 1.0 - float(cost.gather(1, pairs).sum() / cost.sum())
    return pairs


def _rows(dims: Tensor, head_dim: int, heads_per_row: int) -> Tensor:
    """Rows of a projection for every head: ``dims`` ``[G, k]`` of each key/value head -> ``[G * heads_per_row, k]``."""
    per_head = dims.repeat_interleave(heads_per_row, dim=0)
    return per_head + torch.arange(per_head.shape[0])[:, None] * head_dim


def _kept_dims(pairs: Tensor, head_dim: int) -> Tensor:
    """Dimensions of the kept pairs in the half layout: ``[G, 2n]``."""
    return torch.cat([pairs, pairs + head_dim // 2], dim=-1)


def moved_dims(pairs: Tensor, head_dim: int) -> Tensor:
    """Dimensions of all other pairs, in the half layout too: ``[G, k]``."""
    half = head_dim // 2
    keep = torch.zeros(pairs.shape[0], half, dtype=torch.bool).scatter(1, pairs, value=True)
    moved = torch.stack([torch.nonzero(~row).flatten() for row in keep])
    return torch.cat([moved, moved + half], dim=-1)


def geometric(source: Calibrated, target: DecoupledBottleneckAttention, pairs: Tensor) -> dict[str, Tensor]:
    """The rows of ``pairs`` ``[G, n]``, gathered."""
    if not target.pairs:
        return {}
    dims = _kept_dims(pairs, target.head_dim)
    query = _rows(dims, target.head_dim, target.n_heads // target.n_kv_heads).flatten()
    key = _rows(dims, target.head_dim, 1).flatten()
    made = {"pairs": pairs, "q_geo_proj": source.exact("q_proj")[query], "k_geo_proj": source.exact("k_proj")[key]}
    if target.q_bias:
        made["q_geo_bias"] = source.exact("q_bias")[query]
    if target.k_bias:
        made["k_geo_bias"] = source.exact("k_bias")[key]
    return made


def _of_group(
    target: DecoupledBottleneckAttention, moments: Moments, rotation: Rotation, group: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The moments that a shared key is chosen by, of the heads that read it."""
    heads = target.n_heads // target.groups
    width = target.n_kv_heads // target.groups * target.head_dim
    own, rows = slice(group * heads, (group + 1) * heads), slice(group * width, (group + 1) * width)
    return moments["query"]["second"][own], moments["key"]["second"][rows, rows], rotation.rho[own]


@one_thread()
def common_pairs(
    layers: Sequence[tuple[Attention, DecoupledBottleneckAttention, Moments]],
) -> tuple[int, ...]:
    """The pairs that lose least where the shared keys of all layers and groups turn with one list: ascending, ``[n]``.

    What components cost is added up over layers and groups, the dearest of each frequency with the dearest.
    """
    total = sum(
        dearness(*_of_group(target, moments, Rotation.of(source, moments, "none"), group))
        for source, target, moments in layers
        for group in range(target.groups)
    )
    assert isinstance(total, Tensor)
    count = layers[0][1].pairs
    places = total.flatten().argsort(descending=True, stable=True)[:count] // total.shape[1]
    return tuple(places.sort().values.tolist())


def _shared_keys(case: StartCase) -> list[Shared]:
    """One for each group."""
    groups = (_of_group(case.target, case.moments, case.rotation, group) for group in range(case.target.groups))
    keys = [choose(*group, case.target.pairs, pairs=case.pairs) for group in groups]
    case.report["pairs"] = [key.pairs.tolist() for key in keys]
    case.report["rotation_lost"] = 1.0 - sum(key.kept for key in keys) / len(keys)
    return keys


def _of_shared_keys(case: StartCase, keys: Sequence[Shared]) -> dict[str, Tensor]:
    """What each query head reads of its group's rotary key, and what makes the key of all heads' keys."""
    source, target = case.source, case.target
    read = torch.cat([key.query for key in keys])  # [H, 2n, d]
    into = block_diagonal([key.read for key in keys])
    queries = source.exact("q_proj").unflatten(0, (target.n_heads, -1))
    made = {
        "pairs": torch.stack([key.pairs for key in keys]),
        "q_geo_proj": (read @ queries).flatten(0, 1),
        "k_geo_proj": into @ source.exact("k_proj"),
    }
    if target.q_bias:
        bias = source.exact("q_bias").view(target.n_heads, -1, 1)
        made["q_geo_bias"] = (read @ bias).flatten()
    if target.k_bias:
        made["k_geo_bias"] = into @ source.exact("k_bias")
    return made


Moved = tuple[Tensor, Tensor]
"""``into`` ``[k, F d]`` makes what a part's keys do not keep rotary of its heads' keys; ``out`` ``[F d, k]`` takes it
back to where it stood."""


def _rest(key: Shared) -> Moved:
    """What a shared key leaves of its heads' keys, which has no dimensions of its own: orthonormal ones."""
    size = len(key.rest) - len(key.read)
    out = torch.linalg.svd(key.rest)[0][:, :size]
    return out.T @ key.rest, out


def _others(target: DecoupledBottleneckAttention, pairs: Tensor) -> list[Moved]:
    """The dimensions of the pairs that are not among ``pairs`` ``[G, n]``."""
    eye = torch.eye(target.head_dim, dtype=torch.float64)
    each = [eye[dims] for dims in moved_dims(pairs, target.head_dim)]
    share = target.n_kv_heads // target.sem_parts
    parts = [block_diagonal(each[first : first + share]) for first in range(0, len(each), share)]
    return [(into, into.T) for into in parts]


def _semantic(case: StartCase, moved: Sequence[Moved]) -> dict[str, Tensor]:
    """Semantic keys that lose least of the logits of what moves, a part at a time.

    The error of a logit is ``q . (k - k')``: the queries' second moment weighs the keys' error.  A constant key changes
    no softmax, so keys count by their covariance: half over all tokens, half under attention.
    """
    source, target, rotation = case.source, case.target, case.rotation
    if not target.sem_dim:
        return {}
    gamma, spread = key_signal(case)
    share = target.n_kv_heads // target.sem_parts
    downs, reads, lost = [], [], []
    for part, (into, out) in enumerate(moved):
        own = slice(part * share * target.head_dim, (part + 1) * share * target.head_dim)
        weighting = block_diagonal(gamma[part * share : (part + 1) * share].unbind())
        down, up, left = basis(out.T @ weighting @ out, into @ spread[own, own] @ into.T, target.sem_width)
        downs.append(down @ into)
        reads.append((out @ up).unflatten(0, (share, target.head_dim)))  # [F, d, c]
        lost.append(left)
    case.report["semantic_lost"] = sum(lost) / len(lost)
    per_group = target.n_heads // target.n_kv_heads
    read = torch.cat(reads).transpose(1, 2).repeat_interleave(per_group, dim=0) * rotation.scaling  # [H, c, d]
    made = {
        "q_sem_proj": (read @ rotation.folded(source.exact("q_proj"))).flatten(0, 1),
        "k_sem_proj": block_diagonal(downs) @ source.exact("k_proj"),
    }
    if target.q_bias:
        made["q_sem_bias"] = (read @ rotation.folded(source.exact("q_bias"))[..., None]).flatten()
    return made


def key_signal(case: StartCase) -> tuple[Tensor, Tensor]:
    """What weighs an error of each head's keys ``[G, d, d]``, and the spread of all of them ``[G d, G d]``."""
    moments = case.moments
    second = case.rotation.folded_second(moments["query"]["second"])
    gamma = second.unflatten(0, (case.target.n_kv_heads, -1)).sum(1)
    mean = moments["key"]["mean"]
    spread = moments["key"]["second"] - torch.outer(mean, mean)
    return gamma, (spread + moments["attended_key"]["covariance"]) / 2


def value_weighting(target: DecoupledBottleneckAttention, o_proj: Tensor) -> Tensor:
    """What weighs an error of the mixed values, from the source's ``o_proj`` ``[D, H d]``: ``[G, d, d]``."""
    groups, per_group, head_dim = target.n_kv_heads, target.n_heads // target.n_kv_heads, target.head_dim
    by_head = o_proj.view(len(o_proj), target.n_heads, head_dim).permute(1, 0, 2)  # [H, D, d]
    return (by_head.transpose(1, 2) @ by_head).view(groups, per_group, head_dim, head_dim).sum(1)


def _values(case: StartCase) -> dict[str, Tensor]:
    """Values that lose least of the layer's output, as attention mixes them.

    Centring is by what attention makes of the values, not by tokens: most of the mass may lie on one token.
    """
    source, target, attended = case.source, case.target, case.moments["attended_value"]
    groups, per_group, head_dim = target.n_kv_heads, target.n_heads // target.n_kv_heads, target.head_dim
    omega = value_weighting(target, source.exact("o_proj"))
    mean, spread = attended["mean"], attended["second"]
    if target.v_bias or target.o_bias:
        spread = spread - torch.outer(mean, mean)
    else:
        mean = torch.zeros_like(mean)
    bias = source.exact("v_bias")

    parts = target.v_parts
    share, rank = groups // parts, target.v_dim // parts
    found = []
    for part in range(parts):
        own = slice(part * share * head_dim, (part + 1) * share * head_dim)
        weighting = block_diagonal(omega[part * share : (part + 1) * share].unbind())
        found.append(basis(weighting, spread[own, own], rank))
    downs, ups, lost = zip(*found, strict=True)
    case.report["values_lost"] = sum(lost) / parts
    down, up = block_diagonal(downs), block_diagonal(ups)
    offset = mean - up @ (down @ (mean - bias))
    made = {"v_proj": down @ source.exact("v_proj")}
    if target.v_layout == "latent":
        made |= {"v_up_proj": torch.cat(ups), "o_proj": source.exact("o_proj")}
        return made | _behind_latent(case, offset)
    by_head = source.exact("o_proj").view(-1, target.n_heads, head_dim).permute(1, 0, 2)  # [H, D, d]
    made["o_proj"] = (by_head @ torch.stack(ups).repeat_interleave(per_group, dim=0)).transpose(0, 1).flatten(1)
    if target.v_bias:
        made["v_bias"] = down @ bias
        offset = mean - up @ (down @ mean)
    return made | _in_output(case, offset)


def _behind_latent(case: StartCase, offset: Tensor) -> dict[str, Tensor]:
    """Where the ``offset`` ``[G d]`` of all heads' values goes, as behind a latent there is room for it."""
    if not case.target.v_bias:
        return _in_output(case, offset)
    return {"v_bias": offset, **_in_output(case, torch.zeros_like(offset))}


def _in_output(case: StartCase, offset: Tensor) -> dict[str, Tensor]:
    """The output's bias with an ``offset`` ``[G d]`` of all heads' values in it; probabilities sum to one."""
    source, target = case.source, case.target
    if not target.o_bias:
        return {}
    each_head = offset.view(target.n_kv_heads, -1).repeat_interleave(target.n_heads // target.n_kv_heads, dim=0)
    return {"o_bias": source.exact("o_bias") + source.exact("o_proj") @ each_head.flatten()}


def _neutral(target: DecoupledBottleneckAttention, width: int) -> dict[str, Tensor]:
    """Gates and temperatures where they change nothing."""
    declared = target.weights(width)
    names = [name for name in ("gate", "gate_proj", "temperature") if name in declared]
    return {name: torch.zeros(declared[name].shape, dtype=torch.float64) for name in names}
