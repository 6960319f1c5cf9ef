"""llama.cpp itself, from the library inside of the package ``xllamacpp`` (tried with 2026.10.11549).

In a process of its own: what it cannot read ends some of its versions in an abort.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

__all__ = ["INSTALLED", "ends_of", "logits_of", "token_ids_of"]

INSTALLED = importlib.util.find_spec("xllamacpp") is not None

_CACHE_TYPES = 104
"""Bytes from the start of a context's parameters to the types of cached keys and values."""
_FLASH_ATTENTION = 52


class _Parameters(ctypes.Structure):
    """Of a model or a context, with room for fields that later versions add."""

    _fields_ = (("sizes", ctypes.c_uint32 * 4), ("rest", ctypes.c_uint8 * 1008))


class _Batch(ctypes.Structure):
    _fields_ = (
        ("count", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embedding", ctypes.c_void_p),
        ("position", ctypes.POINTER(ctypes.c_int32)),
        ("sequences", ctypes.POINTER(ctypes.c_int32)),
        ("sequence", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("wanted", ctypes.POINTER(ctypes.c_int8)),
    )


def logits_of(path: Path, tokens: list[int]) -> list[list[float]] | str:
    """Logits ``[T, V]`` of a GGUF file, in 32 bits throughout; or why llama.cpp does not read it."""
    return _ask(path, tokens)


def token_ids_of(path: Path, texts: list[str]) -> list[list[int]] | str:
    """The token ids of texts, special tokens in them recognized and none added; or why there are none."""
    return _ask(path, texts)


def ends_of(path: Path, text: str) -> tuple[list[int], list[int]] | str:
    """The ids of a text with what is added around it, and all ids that end a generated text; or why there are none."""
    found = _ask(path, [text, None])
    return found if isinstance(found, str) else (found[0], found[1])


def _ask(path: Path, wanted: list[Any]) -> Any:
    if not INSTALLED:
        pytest.skip("llama.cpp is not here: pip install xllamacpp")
    command = [sys.executable, __file__, str(path), json.dumps(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return json.loads(done.stdout) if done.stdout else f"ended with {done.returncode}: {done.stderr[-400:]}"


def _main(path: str, wanted: list[Any]) -> Any:
    folder = Path(str(importlib.util.find_spec("xllamacpp").origin)).parent  # type: ignore[union-attr]
    library = ctypes.CDLL(str(next(folder.glob("*.so"))))
    said: list[str] = []
    log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(
        lambda level, text, data: said.append(text.decode(errors="replace"))
    )
    library.llama_log_set(log, None)
    library.llama_backend_init()

    def function(name: str, result: Any, *arguments: Any) -> Any:
        found = getattr(library, name)
        found.restype, found.argtypes = result, arguments
        return found

    pointer, whole = ctypes.c_void_p, ctypes.c_int32
    model = function("llama_model_load_from_file", pointer, ctypes.c_char_p, _Parameters)(
        path.encode(), function("llama_model_default_params", _Parameters)()
    )
    if not model:
        return "".join(said)[-400:]
    vocabulary = function("llama_model_get_vocab", pointer, pointer)(model)
    if isinstance(wanted[0], str):
        tokenize = function(
            "llama_tokenize", whole, pointer, ctypes.c_char_p, whole, pointer, whole, ctypes.c_bool, ctypes.c_bool
        )
        added = wanted[-1] is None
        ids = []
        for text in wanted[: len(wanted) - added]:
            data = text.encode()
            found = (whole * (2 * len(data) + 16))()
            ids.append(found[: tokenize(vocabulary, data, len(data), found, len(found), added, True)])
        if added:
            ends = function("llama_vocab_is_eog", ctypes.c_bool, pointer, whole)
            size = function("llama_vocab_n_tokens", whole, pointer)(vocabulary)
            ids.append([id_ for id_ in range(size) if ends(vocabulary, id_)])
        return ids
    settings = function("llama_context_default_params", _Parameters)()
    settings.sizes[:3] = [256, 256, 256]
    types = (ctypes.c_int32 * 2).from_address(ctypes.addressof(settings) + _CACHE_TYPES)
    assert list(types) == [1, 1], "this version lays its parameters out otherwise"
    types[:] = [0, 0]
    ctypes.c_int32.from_address(ctypes.addressof(settings) + _FLASH_ATTENTION).value = 0
    context = function("llama_init_from_model", pointer, pointer, _Parameters)(model, settings)
    if not context:
        return "".join(said)[-400:]
    batch = function("llama_batch_init", _Batch, whole, whole, whole)(len(wanted), 0, 1)
    batch.count = len(wanted)
    for at, token in enumerate(wanted):
        batch.token[at], batch.position[at], batch.sequences[at], batch.wanted[at] = token, at, 1, 1
        batch.sequence[at][0] = 0
    if function("llama_decode", whole, pointer, _Batch)(context, batch):
        return "".join(said)[-400:]
    row = function("llama_get_logits_ith", ctypes.POINTER(ctypes.c_float), pointer, whole)
    size = function("llama_vocab_n_tokens", whole, pointer)(vocabulary)
    return [row(context, at)[:size] for at in range(len(wanted))]


if __name__ == "__main__":
    json.dump(_main(sys.argv[1], json.loads(sys.argv[2])), sys.stdout)
