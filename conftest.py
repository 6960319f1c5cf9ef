"""What all tests need: every test file is a module of its own."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis.internal.conjecture import providers

import caramba
import caramba_document
import caramba_plugins_dba
import caramba_plugins_llama
import caramba_terminal

# Each of several workers has a core: with more threads than cores, all of them wait for one that does not run.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# What a script starts in the background ignores SIGINT, and what that starts does; tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Runs sync each file that they publish: milliseconds on a disk, microseconds in memory.
if Path("/dev/shm").is_dir() and shutil.disk_usage("/dev/shm").free >= 8 << 30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", "/dev/shm")

# Compiled modules are kept, also where the shell says otherwise: each process would compile hundreds of files again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# The suite says the same of the same code each time.  New examples are looked for with HYPOTHESIS_PROFILE=search; one
# that fails becomes an @example.
settings.register_profile("suite", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))
if os.environ.get("HYPOTHESIS_PROFILE", "suite") == "suite":
    # It draws constants of the modules that happen to be imported, which differ from worker to worker
    # (findings/derandomized_examples_follow_imports.sh), and parses hundreds of files for them.
    assert hasattr(providers, "_get_local_constants")
    providers._get_local_constants = providers.Constants

# A test file's module is named by its path from here, such as caramba_plugins_llama.tests.test_export.  Where a
# distribution's folder is named like its package, the package itself must be there first.
for _package in (caramba, caramba_document, caramba_plugins_dba, caramba_plugins_llama, caramba_terminal):
    assert Path(_package.__path__[0]).name == _package.__name__


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The user's cache folder is the tests' own: which plugins fail to load is recorded there.

    Runs draw no pages, which takes longer than a small run does.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("CARAMBA_RUN_REPORT", "0")
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_more_threads() -> Iterator[None]:
    """A test that leaves torch more threads than this worker has cores makes all that follow it wait."""
    yield
    if "PYTEST_XDIST_WORKER" in os.environ and "torch" in sys.modules:
        assert sys.modules["torch"].get_num_threads() <= int(os.environ["OMP_NUM_THREADS"])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Two files that share a module's name would be one file run twice."""
    for item in items:
        module = getattr(item, "module", None)
        if module is not None and Path(module.__file__) != item.path:
            raise pytest.UsageError(
                f"{item.path} would run the tests of {module.__file__}: both are {module.__name__}; "
                "leave __init__.py out of a distribution's tests"
            )


def pytest_collection_finish() -> None:
    """What exists by now stays: the garbage collector need not go through it again and again."""
    gc.freeze()
