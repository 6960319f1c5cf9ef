"""Commands that plugins supply: where they stand, what ``--help`` says of them, and that nothing of it imports them."""

from __future__ import annotations

import sys

import pytest

from caramba_core.cli import main
from tests.plugins.site import Site

COMMANDS = """
import typer

def show(name: str) -> None:
    '''Show one thing.'''
    print("shown", name)

def deep() -> int:
    '''Deeper.'''
    print("deep")
    return 3

app = typer.Typer(help="A group of its own.")

@app.command("first")
def first() -> None:
    '''The first.'''
    print("first")
"""
TRAP = "raise RuntimeError('imported')"


def add(site: Site, name: str, commands: dict[str, str], *, text: str = COMMANDS, **more: dict[str, str]) -> None:
    module = name.replace("-", "_")
    entries = {"caramba.command": {key: f"{module}:{value}" for key, value in commands.items()}}
    entries |= {f"caramba.{group}": {key: f"{module}:{value}" for key, value in more[group].items()} for group in more}
    site.add(name, entries=entries, modules={module: text})


def test_help_says_what_a_command_does_without_importing_it(site: Site) -> None:
    line = "Draw a model: repeated blocks once, as .svg or .html."
    add(site, "caramba-plugin-a", {"sketch": "show", "bare": "deep"}, text=TRAP, command_help={line: "show"})
    helped = site.caramba("--help")
    assert helped.code == 0
    lines = [row.strip("│ ").split("  ", 1) for row in helped.out.splitlines()]
    assert ["sketch", f"{line} (caramba-plugin-a)"] in [[word.strip() for word in row] for row in lines]
    assert "(supplied by caramba-plugin-a)" in helped.out
    assert site.caramba("sketch", "x").code == 2  # it is imported when it is called, and is broken


def test_a_line_of_help_is_no_component(site: Site) -> None:
    add(site, "caramba-plugin-a", {"sketch": "show"}, command_help={"Say: anything, even [this].": "show"})
    listed = site.caramba("plugins", "list").out
    assert "Say" not in listed
    assert "caramba-plugin-a 1.0  ok" in listed


def test_a_dot_leads_into_a_group_of_the_core(site: Site) -> None:
    add(site, "caramba-plugin-a", {"plugins.look": "show"}, command_help={"Look at one.": "show"})
    assert "look" in site.caramba("plugins", "--help").out
    assert "Look at one. (caramba-plugin-a)" in site.caramba("plugins", "--help").out
    assert site.caramba("plugins", "look", "this").out == "shown this\n"
    assert "Show one thing." in site.caramba("plugins", "look", "--help").out
    assert "Usage: caramba plugins look" in site.caramba("plugins", "look", "--help").out
    assert "Look at one." not in site.caramba("--help").out
    assert site.caramba("look", "this").code == 2
    assert "Did you mean 'look'" in site.caramba("plugins", "lok").said
    assert site.caramba("plugins", "list").code == 0


def test_a_dot_leads_into_a_group_of_another_plugin(site: Site) -> None:
    add(site, "caramba-plugin-a", {"mine": "app"})
    add(site, "caramba-plugin-b", {"mine.second": "show", "mine.inner.third": "deep"})
    assert site.caramba("mine", "first").out == "first\n"
    assert site.caramba("mine", "second", "x").out == "shown x\n"
    assert site.caramba("mine", "inner", "third").out == "deep\n"
    said = site.caramba("mine", "--help").said
    assert "A group of its own." in said
    assert "Commands: third." in said


def test_an_app_of_one_command_that_nobody_adds_to_is_that_command(site: Site) -> None:
    add(site, "caramba-plugin-a", {"mine": "app"})
    assert site.caramba("mine").out == "first\n"


def test_a_group_that_nobody_supplies_is_made(site: Site) -> None:
    add(site, "caramba-plugin-a", {"box.look": "show", "box.deep.er": "deep"}, command_help={"Look into it.": "show"})
    add(site, "caramba-plugin-b", {"box.again": "show"}, text=TRAP)
    assert "Commands: again, look, deep." in site.caramba("--help").said
    helped = site.caramba("box", "--help")
    assert "Look into it. (caramba-plugin-a)" in helped.said
    assert "(supplied by caramba-plugin-b)" in helped.said
    assert site.caramba("box", "look", "x").out == "shown x\n"
    ran = site.caramba("box", "deep", "er")
    assert (ran.code, ran.out) == (0, "deep\n")  # what a command returns is no exit code
    assert "look" in site.caramba("box").said


def test_names_that_are_taken(site: Site) -> None:
    """The core's command keeps its name; plugins that compete are called by their qualified names."""
    add(site, "caramba-plugin-a", {"plugins.list": "show", "same": "show", "plugins.same": "show"})
    add(site, "caramba-plugin-b", {"same": "deep", "plugins.same": "deep"})
    assert "plugin API" in site.caramba("plugins", "list").out
    assert site.caramba("plugins", "caramba-plugin-a:list", "x").out == "shown x\n"
    assert site.caramba("plugins", "caramba-plugin-b:same").out == "deep\n"
    assert site.caramba("caramba-plugin-a:same", "x").out == "shown x\n"
    assert site.caramba("same", "x").code == 2
    assert site.caramba("same", "x", "--no-plugin", "caramba-plugin-b").out == "shown x\n"
    helped = site.caramba("--help").out
    assert "caramba-plugin-a:same" in helped and "caramba-plugin-b:same" in helped


@pytest.mark.parametrize("json", [(), ("--format", "json")])
def test_a_number_that_a_command_returns_is_no_exit_code(site: Site, json: tuple[str, ...]) -> None:
    text = COMMANDS.replace("def deep()", "def deep(format: str = '')")
    add(site, "caramba-plugin-a", {"deep": "deep"}, text=text)
    assert site.caramba("deep", *json).code == 0


def test_the_command_alone_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert "compile" in told.out + told.err
    assert "Traceback" not in told.err


def test_known_commands_do_not_wait_for_those_of_plugins(site: Site) -> None:
    program = (
        "import sys\nfrom caramba_core.cli import main\n"
        "try:\n    main([{!r}, '--help'])\nexcept SystemExit as ended:\n    assert not ended.code\n"
        "assert 'caramba_core.plugins.registry' not in sys.modules"
    )
    for command in ("run", "compile"):
        ran = site.python(program.format(command))
        assert ran.code == 0, ran.err


def test_help_lines_of_installed_commands_are_those_of_their_functions(capsys: pytest.CaptureFixture[str]) -> None:
    """The line in the metadata is a copy; the command's own ``--help`` says the same."""
    from caramba_core.plugins.registry import registry

    for entry in registry().entries("command"):
        line = registry().command_help(entry)
        assert line, f"{entry} has no line in the group caramba.command_help"
        with pytest.raises(SystemExit):
            main([*entry.name.split("."), "--help"])
        assert line in " ".join(capsys.readouterr().out.split()), entry
        assert entry.value.partition(":")[0] in sys.modules
