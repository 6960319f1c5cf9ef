"""What the tests of exported models need."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture
def remote_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Remote code is copied into a folder of this test, and forgotten afterwards."""
    dynamic = importlib.import_module("transformers.dynamic_module_utils")
    logging = importlib.import_module("transformers.utils.logging")
    logging.disable_progress_bar()
    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]
