"""What all tests need: every test file is a module of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

import caramba
import caramba_plugins_dba
import caramba_plugins_llama

# A test file's module is named by its path from here, such as caramba_plugins_llama.tests.test_export.  Where a
# distribution's folder is named like its package, the package itself must be there first.
for _package in (caramba, caramba_plugins_dba, caramba_plugins_llama):
    assert Path(_package.__path__[0]).name == _package.__name__


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Two files that share a module's name would be one file run twice."""
    for item in items:
        module = getattr(item, "module", None)
        if module is not None and Path(module.__file__) != item.path:
            raise pytest.UsageError(
                f"{item.path} would run the tests of {module.__file__}: both are {module.__name__}; "
                "leave __init__.py out of a distribution's tests"
            )
