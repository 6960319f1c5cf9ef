"""The pytest plugin: runs every check that applies against the components that a test names.

It loads with every pytest run where caramba-core is installed, so it imports nothing until a test asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

__all__ = ["component_check", "pytest_configure", "pytest_generate_tests"]


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", "components(*cases): components that caramba's test kit checks")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each case and each check that applies to it."""
    if "component_check" not in metafunc.fixturenames:
        return
    from caramba_plugins_testing.checks import CHECKS

    cases: list[Any] = [case for mark in metafunc.definition.iter_markers("components") for case in mark.args]
    if not cases:
        raise pytest.UsageError(
            f"{metafunc.definition.nodeid} asks for component_check without @pytest.mark.components(Case(...))"
        )
    pairs = [(case, check) for case in cases for check in CHECKS.values() if check.applies(case)]
    ids = [f"{case.name}-{check.name}" for case, check in pairs]
    metafunc.parametrize("component_check", pairs, ids=ids, indirect=True)


@pytest.fixture
def component_check(request: pytest.FixtureRequest) -> Iterator[Callable[[], None]]:
    """Runs one check against one of the components that the marker ``components`` names."""
    import torch

    case, check = request.param
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors this small only wait for one another
    yield lambda: check.run(case)
    torch.set_num_threads(threads)
