"""A teacher's largest log-probabilities of each token, kept in a file beside a run: later epochs need no teacher.

Axes: B sequences, T tokens of one, k log-probabilities kept per token, N = B T.

``identity.json`` says whose they are, and how they were made; ``records.bin`` holds one record a sequence, of a fixed
size: 16 bytes that name its tokens (BLAKE2), a CRC-32 of what follows, then ids ``[T, k]`` (uint16, uint32 for larger
vocabularies), log-probabilities ``[T, k]`` (float16) and that of all other tokens together ``[T]`` (float32).  Records
are only ever appended; one that a process died over is dropped, and a damaged one is made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import weakref
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from caramba_core.run.atomic import write_json
from caramba_plugins_upcycle.strategies import KeptLogits

__all__ = ["Largest", "TeacherLogits", "kept_divergence", "largest", "sequence_keys"]

_KEY: Final = 16
_CRC: Final = 4


class Largest(NamedTuple):
    """Of each row the tokens with the largest probabilities, int64 ``[N, k]``, and their log-probabilities.

    ``values`` are float32 ``[N, k]`` that float16 can hold; ``rest`` is that of all other tokens, float32 ``[N]``.
    """

    ids: Tensor
    values: Tensor
    rest: Tensor


def largest(logits: Tensor, top: int, temperature: float) -> Largest:
    """The ``top`` largest log-probabilities of ``[N, V]``, divided by the temperature first."""
    scaled = _scaled(logits, temperature)
    total = scaled.logsumexp(-1, keepdim=True)
    values, ids = scaled.topk(top, dim=-1)
    rest = scaled.scatter(-1, ids, float("-inf")).logsumexp(-1, keepdim=True) - total
    return Largest(ids, (values - total).half().float(), rest.squeeze(-1).float())


def kept_divergence(student: Tensor, kept: Largest, temperature: float, *, reverse: bool = False) -> Tensor:
    """KL(teacher || student) of each row over the kept tokens and all others as one class: ``[N, V] -> [N]``.

    In nats times ``temperature**2``, as the divergence over the whole vocabulary, which it never exceeds but by the
    rounding of what is kept.  ``reverse``: KL(student || teacher).
    """
    scaled = _scaled(student, temperature)
    total = scaled.logsumexp(-1, keepdim=True)
    values = scaled.gather(-1, kept.ids) - total
    rest = (scaled.scatter(-1, kept.ids, float("-inf")).logsumexp(-1, keepdim=True) - total).squeeze(-1)
    log_p, log_q = (kept.values, kept.rest), (values, rest)
    if reverse:
        log_p, log_q = log_q, log_p
    inside = (log_p[0].exp() * (log_p[0] - log_q[0])).sum(-1)
    return (inside + log_p[1].exp() * (log_p[1] - log_q[1])) * temperature**2


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature


def sequence_keys(*parts: Tensor | None) -> list[bytes]:
    """What names each sequence: a hash of its row in every part, ``[B, ...]``."""
    rows = [None if part is None else part.cpu().contiguous().numpy() for part in parts]
    count = len(next(part for part in rows if part is not None))
    return [
        hashlib.blake2b(
            b"|".join(b"" if part is None else part[row].tobytes() for part in rows), digest_size=_KEY
        ).digest()
        for row in range(count)
    ]


class TeacherLogits:
    """The records of a folder.  Those of another teacher, or made otherwise, are removed."""

    def __init__(
        self, folder: Path, config: KeptLogits, *, tokens: int, vocabulary: int, identity: Mapping[str, Any]
    ) -> None:
        self.top = config.top
        self.tokens = tokens
        self._ids = np.dtype(np.uint16 if vocabulary <= 1 << 16 else np.uint32)
        self._size = _KEY + _CRC + tokens * config.bytes_per_token(vocabulary)
        self._places: dict[bytes, int] = {}
        folder.mkdir(exist_ok=True)
        self._path = folder / "records.bin"
        said = {**identity, "top": config.top, "tokens": tokens, "vocabulary": vocabulary}
        if not _says(folder / "identity.json", said):
            self._path.unlink(missing_ok=True)
            write_json(folder / "identity.json", said)
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        self._count = os.fstat(self._file).st_size // self._size
        weakref.finalize(self, os.close, self._file)
        os.ftruncate(self._file, self._count * self._size)  # without what a process died over
        for place in range(self._count):
            self._places[os.pread(self._file, _KEY, place * self._size)] = place

    def read(self, keys: Sequence[bytes], device: torch.device) -> Largest | None:
        """What is kept of these sequences, ``[B T, ...]``; ``None`` where one of them is not there."""
        found = [self._record(key) for key in keys]
        if any(one is None for one in found):
            return None
        ids, values, rest = (np.concatenate([one[part] for one in found if one is not None]) for part in range(3))
        tensors = (torch.from_numpy(part).to(device, non_blocking=True) for part in (ids, values, rest))
        return Largest(*tensors)

    def write(self, keys: Sequence[bytes], kept: Largest) -> None:
        """Append the records of sequences that are not there."""
        ids = kept.ids.view(len(keys), self.tokens, -1).cpu().numpy().astype(self._ids)
        values = kept.values.view(len(keys), self.tokens, -1).half().cpu().numpy()
        rest = kept.rest.view(len(keys), -1).cpu().numpy()
        for row, key in enumerate(keys):
            if key in self._places and self._record(key) is not None:
                continue
            payload = ids[row].tobytes() + values[row].tobytes() + rest[row].tobytes()
            record = key + zlib.crc32(payload).to_bytes(_CRC, "little") + payload
            assert len(record) == self._size
            place = self._places.get(key, self._count)
            written = 0
            while written < len(record):
                written += os.pwrite(self._file, record[written:], place * self._size + written)
            self._count = max(self._count, place + 1)
            self._places[key] = place

    def _record(self, key: bytes) -> tuple[Any, Any, Any] | None:
        """Ids int64, values and rest float32 of a sequence, if its record is whole."""
        if key not in self._places:
            return None
        record = os.pread(self._file, self._size, self._places[key] * self._size)
        payload = record[_KEY + _CRC :]
        if len(record) < self._size or zlib.crc32(payload) != int.from_bytes(record[_KEY : _KEY + _CRC], "little"):
            return None
        count = self.tokens * self.top
        ids = np.frombuffer(payload, self._ids, count)
        values = np.frombuffer(payload, np.float16, count, offset=ids.nbytes)
        rest = np.frombuffer(payload, np.float32, self.tokens, offset=ids.nbytes + values.nbytes)
        shape = self.tokens, self.top
        return ids.astype(np.int64).reshape(shape), values.astype(np.float32).reshape(shape), rest.copy()


def _says(path: Path, identity: Mapping[str, Any]) -> bool:
    """Whether a folder's records were made so."""
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")) == identity)
    except (OSError, ValueError):
        return False
