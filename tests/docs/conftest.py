"""A folder in which the pages' examples run: a manifest, its teacher with a tokenizer, token arrays, a text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.plugins.conftest import site
from tests.run.test_tokenizers import WORDS, write_tokenizer
from tests.run.workspace import make_workspace

__all__ = ["site", "workspace"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    manifest = make_workspace(folder)
    text = manifest.read_text().replace("name: small", "name: smollm2_dba").replace("name: half", "name: half_cache")
    (folder / "experiment.yml").write_text(text)
    write_tokenizer(folder / "teacher" / "tokenizer.json", WORDS)
    (folder / "book.txt").write_text(" ".join(WORDS[int(id_)] for id_ in np.load(folder / "train.npy")))
    return folder
