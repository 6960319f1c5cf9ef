"""Checkpoints on the Hugging Face hub: ``hf://org/repo[@revision][/file]``.

Through the library ``huggingface_hub``: its cache, its offline mode (``HF_HUB_OFFLINE=1``) and its tokens.  Of a
repository only what a checkpoint needs is fetched, and the revision is pinned to the commit that it stood for.  A token
is never part of a message.  Texts of datasets, ``hf://datasets/org/repo[@revision]``, are streamed.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import attrs
from caramba_plugins_standard.dataset_texts import DatasetTexts
from caramba_plugins_standard.libraries import library
from caramba_plugins_standard.loading import Fetched
from caramba_plugins_standard.texts import Texts

from caramba_core.errors import CarambaError, InputError, ResourceExhausted
from caramba_core.places import expanded
from caramba_plugins_llama.gguf_header import parts_of
from caramba_plugins_llama.hf_folder import COMPANIONS
from caramba_plugins_llama.inside import require_inside
from caramba_plugins_llama.json_file import read_object

__all__ = ["Hub"]

_ADDRESS: Final = re.compile(
    r"(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>refs/(?:pr|convert)/[^/@\s]+|[^/@\s]+))?(?:/(?P<file>[^@\s]+))?"
)
_SECRET: Final = re.compile(
    r"""hf_[A-Za-z0-9_]{4,} | (?i:bearer\s+)\S+  # tokens
    | (?<=://)[^/@\s]+(?=@) | (?<=\?)[\w.~%-]+=[^\s'"]*  # passwords and signatures in addresses
    """,
    re.VERBOSE,
)

_WEIGHTS: Final = ("model.safetensors", "model.safetensors.index.json")


@attrs.frozen(kw_only=True)
class _Address:
    repository: str
    revision: str
    file: str | None

    def __str__(self) -> str:
        file = "" if self.file is None else f"/{self.file}"
        return f"hf://{self.repository}@{self.revision}{file}"

    @property
    def folder(self) -> str:
        """Prefix of the named file's neighbours in the repository."""
        return "" if self.file is None else self.file[: self.file.rfind("/") + 1]


class Hub:
    """What ``hf://`` stands for."""

    @classmethod
    def fetch(cls, location: str) -> Fetched:
        """Fetch a repository's checkpoint, or one file of it; :class:`InputError` says what stands in the way."""
        address = _parse(location)
        with _explained(address):
            commit, has, get = _offline(address) if _is_offline() else _online(address)
            path = _collect(address, has, get)
        pinned = attrs.evolve(address, revision=commit)
        return Fetched(path=path, pinned=str(pinned))

    @classmethod
    def cached(cls, location: str) -> Path | None:
        """Where a repository's checkpoint lies if all of it was fetched before; the network is not asked."""
        address = _parse(location)
        if "huggingface_hub" not in sys.modules and not _kept(address.repository).is_dir():
            return None  # a quarter of a second sooner than the library would say so
        try:
            _, has, get = _offline(address)
            return _collect(address, has, get)
        except InputError:
            return None

    @classmethod
    def texts(cls, location: str, *, column: str, subset: str | None, split: str) -> Texts:
        """The texts of a dataset, ``datasets/org/repo[@revision]``, at the commit that the revision stands for now."""
        address = _parse(location.removeprefix("datasets/"))
        if not location.startswith("datasets/") or address.file is not None:
            raise InputError(f"hf://{location} names no dataset", expected="hf://datasets/org/repo[@revision]")
        address = attrs.evolve(address, repository=f"datasets/{address.repository}")
        name = address.repository.removeprefix("datasets/")
        with _explained(address):
            if _is_offline():
                raise InputError(
                    f"hf://{address.repository} is streamed, and offline mode is on (HF_HUB_OFFLINE)",
                    hint="unset HF_HUB_OFFLINE, or name files that are on this machine",
                )
            commit = _library().HfApi().dataset_info(name, revision=address.revision).sha
        return _HubTexts(
            name=f"hf://{address.repository}",
            location=name,
            revision=str(commit),
            column=column,
            subset=subset,
            split=split,
            address=address,
        )


@attrs.frozen(kw_only=True)
class _HubTexts(DatasetTexts):
    address: _Address

    def read(self, progress: Callable[[int], None] = lambda size: None) -> Iterator[Iterator[str]]:
        """Each text; the network may fail at any of them."""
        with _explained(self.address):
            yield from super().read(progress)


def _kept(repository: str) -> Path:
    """Where the library keeps a repository, by the environment variables that it documents."""
    home = os.environ.get("HF_HOME") or f"{os.environ.get('XDG_CACHE_HOME', '~/.cache')}/huggingface"
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or f"{home}/hub"
    return expanded(os.path.expandvars(cache)) / f"models--{repository.replace('/', '--')}"


def _parse(location: str) -> _Address:
    found = _ADDRESS.fullmatch(location)
    if found is None or ".." in found["repository"]:
        raise InputError(
            f"hf://{location} is not an address on the hub", expected="hf://org/repo, hf://org/repo@revision/file"
        )
    if found["file"] is not None:
        require_inside(found["file"], f"hf://{location}")
    revision = (found["revision"] or "main").replace("%2F", "/")
    return _Address(repository=found["repository"], revision=revision, file=found["file"])


def _collect(address: _Address, has: Callable[[str], bool], get: Callable[[str], Path]) -> Path:
    """Fetch what the address needs; the folder, or the named file."""
    if address.file is not None and address.file.endswith(".gguf"):
        return {part: get(part) for part in parts_of(address.file)}[address.file]
    beside = address.folder
    if not has(f"{beside}config.json"):
        raise InputError(
            f"{address} has no config.json",
            expected="a Hugging Face checkpoint",
            hint="name a GGUF file of the repository: hf://org/repo/FILE.gguf" if address.file is None else None,
        )
    weights = address.file or next((name for name in _WEIGHTS if has(name)), None)
    if weights is None:
        raise InputError(
            f"{address} has no safetensors",
            expected=" or ".join(_WEIGHTS),
            hint=f"pickled weights are read only where they are named: hf://{address.repository}/pytorch_model.bin",
        )
    config = get(f"{beside}config.json")
    for name in COMPANIONS:
        if has(beside + name):
            get(beside + name)
    path = get(weights)
    if weights.endswith(".index.json"):
        listed = read_object(path).get("weight_map")
        names = set(listed.values()) if isinstance(listed, dict) else set()
        for name in sorted(str(name) for name in names):
            get(beside + require_inside(name, str(address)))
    return config.parent if address.file is None else path


# ------------------------------------------------------------------------------------------------ the library


def _library() -> Any:
    hub = library("huggingface_hub", "hf:// is fetched", extra="caramba-plugins-llama[hub]")
    import_module("huggingface_hub.constants")
    import_module("huggingface_hub.errors")
    return hub


def _is_offline() -> bool:
    return bool(_library().constants.HF_HUB_OFFLINE)


def _online(address: _Address) -> tuple[str, Callable[[str], bool], Callable[[str], Path]]:
    """The commit behind the revision, what it holds, and how to get a file of it."""
    hub = _library()
    info = hub.HfApi().model_info(address.repository, revision=address.revision)
    names = {sibling.rfilename for sibling in info.siblings or ()}

    def get(name: str) -> Path:
        if name not in names:
            raise InputError(
                f"hf://{address.repository}@{address.revision} has no file {name}",
                hint="fetch another revision, or name another file",
            )
        path = Path(hub.hf_hub_download(address.repository, name, revision=address.revision))
        if _commit(path, name) != info.sha:  # asked for by branch, so that the cache knows the branch when offline
            path = Path(hub.hf_hub_download(address.repository, name, revision=info.sha))
        return path

    return str(info.sha), names.__contains__, get


def _offline(address: _Address) -> tuple[str, Callable[[str], bool], Callable[[str], Path]]:
    """The same from the cache alone."""
    hub = _library()

    def cached(name: str) -> Path | None:
        found = hub.try_to_load_from_cache(address.repository, name, revision=address.revision)
        return Path(found) if isinstance(found, str) else None

    def get(name: str) -> Path:
        path = cached(name)
        if path is None:
            raise InputError(
                f"{address}: {name} is not in the hub's cache, and offline mode is on (HF_HUB_OFFLINE)",
                hint="fetch it once while online, or unset HF_HUB_OFFLINE",
            )
        return path

    name = address.file or "config.json"
    return _commit(get(name), name), lambda name: cached(name) is not None, get


def _commit(path: Path, name: str) -> str:
    """The commit that a file in the hub's cache belongs to."""
    return path.parents[name.count("/")].name


@contextmanager
def _explained(address: _Address) -> Iterator[None]:
    """Turn the library's errors into ones that say what to do; no token, and no traceback that could hold one."""
    errors = _library().errors
    where = f"hf://{address.repository}"
    login = "log in with: hf auth login (or set HF_TOKEN)"
    failure: CarambaError
    try:
        yield
        return
    except CarambaError:
        raise
    except errors.GatedRepoError:
        failure = InputError(
            f"{where} is gated: its owner grants access to users who ask",
            hint=f"ask on the repository's page, then {login}",
        )
    except errors.RepositoryNotFoundError:
        failure = InputError(
            f"{where} does not exist, or is private", hint=f"check the name; if it is private, {login}"
        )
    except errors.RevisionNotFoundError:
        failure = InputError(f"{where} has no revision {address.revision!r}", expected="a branch, tag or commit")
    except errors.HFValidationError as error:
        failure = InputError(f"{where}: {_redacted(error)}", expected="hf://org/repo")
    except Exception as error:  # noqa: BLE001  the network fails in more ways than the library names
        number = error.errno if isinstance(error, OSError) else None
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            failure = ResourceExhausted(
                f"{where}: the disk of the hub's cache takes no more: {os.strerror(number)}",
                hint="free space, or set HF_HOME",
            )
        elif number in (errno.EACCES, errno.EPERM, errno.EROFS):
            failure = InputError(
                f"{where}: the hub's cache cannot be written: {os.strerror(number)}",
                hint="set HF_HOME to a folder of your own",
            )
        else:
            failure = InputError(
                f"{where} could not be fetched: {_redacted(error)}",
                hint="check the network; with HF_HUB_OFFLINE=1 what is in the cache is used",
            )
    raise failure from None


def _redacted(error: Exception) -> str:
    """The first line of an error, without anything that looks like a secret."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    token = _library().get_token()
    return _SECRET.sub("***", text.replace(token, "***") if token else text)
