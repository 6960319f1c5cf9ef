"""Exit codes and reports of ``caramba``, through a made-up command that fails on demand."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module

import pytest

from caramba_core.cli import COMMANDS
from tests.plugins.site import Site

COMMAND = """
import errno, os, signal
import typer
from typing import Annotated

def command(fault: str, format: Annotated[str, typer.Option()] = "text"):
    '''Fail.'''
    from caramba_core import errors
    if fault == "user":
        raise errors.InputError("no such file", expected="a file", hint="make one")
    if fault == "verify":
        raise errors.VerificationFailed("1.3 is above 1.2")
    if fault == "number":
        raise errors.NumericalStop("loss is nan")
    if fault == "memory":
        raise MemoryError
    if fault == "torch memory":
        import torch
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 GiB\\nmore")
    if fault == "allocation":
        import torch
        torch.empty(1 << 60)
    if fault == "disk":
        raise OSError(errno.ENOSPC, "No space left on device", "/somewhere/file")
    if fault == "limit":
        raise OSError(errno.EFBIG, "File too large", "/somewhere/file")
    if fault == "permission":
        raise PermissionError(errno.EACCES, "Permission denied", "/somewhere/file")
    if fault == "read-only":
        raise OSError(errno.EROFS, "Read-only file system", "/somewhere/file")
    if fault == "bug":
        raise ZeroDivisionError("a bug")
    if fault == "interrupt":
        # A shell that starts its jobs in the background has them ignore this signal, and children inherit that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()
    if fault == "terminate":
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            print("unwound")
    if fault == "much":
        for _ in range(100000):
            print("a line that nobody reads")
    if fault == "exit":
        raise typer.Exit(7)
    print("done")
"""


@pytest.fixture
def made(site: Site) -> Site:
    site.add(
        "caramba-plugin-fail", entries={"caramba.command": {"fail": "failing:command"}}, modules={"failing": COMMAND}
    )
    return site


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        ("nothing", 0, "done"),
        ("user", 2, "error: no such file\n  expected: a file\n  hint: make one"),
        ("verify", 3, "error: 1.3 is above 1.2"),
        ("number", 4, "error: loss is nan"),
        ("memory", 5, "error: out of memory"),
        ("torch memory", 5, "error: out of memory: CUDA out of memory. Tried to allocate 7 GiB\n"),
        ("allocation", 5, "error: out of memory"),
        ("disk", 5, "error: no space left on the device while writing /somewhere/file"),
        ("limit", 5, "error: a file would be larger than is allowed while writing /somewhere/file"),
        ("permission", 2, "error: /somewhere/file cannot be used: Permission denied\n  hint: "),
        ("read-only", 2, "error: /somewhere/file cannot be used: Read-only file system\n  hint: "),
        ("exit", 7, ""),
        ("interrupt", 130, ""),
        ("terminate", 143, "unwound"),
    ],
)
def test_exit_codes(made: Site, fault: str, code: int, said: str) -> None:
    ran = made.caramba("fail", fault)
    assert ran.code == code
    assert said in ran.err + ran.out
    assert "Traceback" not in ran.err


def test_crash_names_whose_fault_it_is(made: Site) -> None:
    ran = made.caramba("fail", "bug")
    assert ran.code == 1
    assert ran.err.startswith("internal error: ZeroDivisionError: a bug\n")
    assert "this is a fault of caramba-plugin-fail 1.0, not of your input" in ran.err
    assert "command: caramba fail bug" in ran.err
    assert "Traceback" in ran.err


def test_errors_as_data(made: Site) -> None:
    for spelling in (("--format", "json"), ("--format=json",)):
        ran = made.caramba("fail", "user", *spelling)
        assert ran.code == 2
        assert json.loads(ran.out) == {
            "error": "InputError",
            "exit_code": 2,
            "message": "no such file",
            "expected": "a file",
            "hint": "make one",
        }


@pytest.mark.parametrize(
    "arguments",
    [
        ("compile", "nowhere.yml", "--json"),
        ("compile", "--format", "json"),
        ("compile", "nowhere.yml", "--json", "--nonsense"),
        ("explain", "nothing_at_all", "--json"),
        ("plugins", "list", "--json", "--no-plugin", "nobody"),
        ("presets", "list", "--json", "surplus"),
        ("nonsense", "--json"),
    ],
    ids=" ".join,
)
def test_whoever_asks_for_data_gets_errors_as_data(made: Site, arguments: tuple[str, ...]) -> None:
    ran = made.caramba(*arguments)
    assert ran.code == 2
    data = json.loads(ran.out)
    assert data["exit_code"] == 2
    assert data["message"]
    assert ran.err == ""
    text = made.caramba(*(word for word in arguments if word not in ("--json", "--format", "json")))
    assert text.out == ""
    assert text.err


def test_a_crash_as_data(made: Site) -> None:
    ran = made.caramba("fail", "bug", "--format=json")
    assert ran.code == 1
    data = json.loads(ran.out)
    assert (data["error"], data["exit_code"]) == ("InternalError", 1)
    assert data["message"] == "internal error of caramba-plugin-fail 1.0: ZeroDivisionError: a bug"
    assert "Traceback" in ran.err


def test_usage_errors(made: Site) -> None:
    for arguments in (("fail",), ("fail", "user", "--nonsense"), ("nonsense",), ("--nonsense",)):
        assert made.caramba(*arguments).code == 2
    assert "Did you mean 'plugins'" in made.caramba("plugin").said


def test_reader_that_goes_away(made: Site) -> None:
    pipeline = f"{sys.executable} -m caramba fail much | head -n 1; echo ${{PIPESTATUS[0]}} >&2"
    ran = subprocess.run(
        ["bash", "-c", pipeline],
        env={"PYTHONPATH": str(made.folder), "XDG_CACHE_HOME": str(made.cache), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout == "a line that nobody reads\n"
    assert ran.stderr == "141\n"


def test_the_originals_spelling_of_run(made: Site) -> None:
    for arguments in (("--manifest", "nowhere.yml"), ("--manifest=nowhere.yml",), ("run", "nowhere.yml")):
        ran = made.caramba(*arguments)
        assert ran.code == 2
        assert "nowhere.yml" in ran.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_table_exists(command: str) -> None:
    module, _, name = COMMANDS[command].target.partition(":")
    assert hasattr(import_module(module), name)


def test_both_module_names_run_it(made: Site) -> None:
    for module in ("caramba", "caramba_core"):
        ran = made.run(module, "--version")
        assert (ran.code, ran.out.split()[0]) == (0, "caramba")


def test_help_names_the_supplier_of_a_command(made: Site) -> None:
    said = made.caramba("--help").said
    assert "Commands of plugins" in said
    assert "(supplied by caramba-plugin-fail)" in said
    assert "Fail." in made.caramba("fail", "--help").said
