"""Commands in shell blocks run, or, where they cannot in a test, name what there is: options, files, targets."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from caramba_core.cli import main
from tests.docs.blocks import PAGES, RECIPES, ROOT, Block, blocks, commands

GROUPS = {"plugins", "presets", "data", "runs"}
"""Commands that have subcommands."""

NOT_RUN = {
    "caramba init --from .demo": "tests/test_init.py does so for a checkpoint of each family; so with the next two",
    "caramba run manifest.yml": "it runs what caramba init writes",
    "caramba run smollm2_135m": "it needs weights and texts of a reader; tests/manifest/test_presets.py loads it",
    "caramba report runs/smollm2": "the run is a reader's own; caramba-plugins-report tests it",
    "caramba plugins new": "tests/plugins/test_scaffold.py writes every scaffold and runs its tests",
    "caramba plugins list": "tests/plugins/test_docs.py runs it with the tutorial's plugin installed",
    "caramba export runs/NAME/GROUP/RUN": "the run is a reader's own; test_export.py of the distributions exports",
    "caramba generate runs/NAME/GROUP/RUN": "the run is one of a reader; caramba-plugins-decode tests it",
    "caramba chats runs/NAME/GROUP/RUN": "the run is a reader's own; test_chats.py of caramba-plugins-decode does it",
    "caramba samples teacher.gguf": "the teacher is a reader's own; test_samples.py of caramba-plugins-decode does it",
    "caramba eval runs/NAME/GROUP/RUN": "the run is a reader's own; caramba-plugins-eval measures one",
    "caramba report NAME/GROUP": "the runs are a reader's own; test_report.py of caramba-plugins-report writes pages",
    "caramba compare NAME/GROUP": "the runs are a reader's own; test_report.py of caramba-plugins-report compares",
    "caramba runs": "the runs are a reader's own; test_runs.py of caramba-plugins-report does all of these",
    "caramba chat runs/NAME/GROUP/RUN": "the run is a reader's own; test_chat.py of caramba-plugins-decode chats",
}
"""Commands that no test of this file runs, by how they begin, and why.  Their options are checked all the same."""

TOOLS = {"python", "python3", "pip", "make", "pytest", "git", ".", "wait"}
"""Programs that are not caramba's; what they name of ours must be there."""

ENGINES = {"llama-cli", "llama-server", "vllm"}
"""Programs that serve exported models where caramba is not."""

PROJECTS = [
    file.read_text()
    for file in (ROOT / "pyproject.toml", *ROOT.glob("*/pyproject.toml"), *ROOT.glob("plugins/*/pyproject.toml"))
]
DISTRIBUTIONS = {name for text in PROJECTS for name in re.findall(r'^name = "(.+)"', text, re.MULTILINE)}

SHELL = [(block, words) for block in blocks("bash", "console", "sh") for words in commands(block)]
OURS = [(block, words) for block, words in SHELL if words[0] == "caramba"]
INLINE = sorted(
    {
        (str(page.relative_to(ROOT)), found)
        for page in PAGES
        if page.name != "CHANGELOG.md"
        for found in re.findall(r"(?<!`)`(caramba [a-z][^`\n]*)`(?!`)", page.read_text(encoding="utf-8"))
    }
)


def ran(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0), capsys.readouterr().out


def require_known(words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The subcommand is there and takes the options."""
    monkeypatch.setenv("COLUMNS", "200")
    depth = 2 if words[1] in GROUPS and len(words) > 2 and not words[2].startswith("-") else 1
    code, text = ran([*words[1 : depth + 1], "--help"], capsys)
    assert code == 0, f"there is no command {' '.join(words[: depth + 1])}"
    for option in words[depth + 1 :]:
        name = option.partition("=")[0].strip("[],")
        if name.startswith("-") and name != "--no-plugin":
            assert re.search(rf"(?<!\S){re.escape(name)}(?!\S)", text), f"{words[1:]} has no option {name}"


@pytest.mark.parametrize(("block", "words"), OURS, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_a_command_runs(
    block: Block,
    words: list[str],
    workspace: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    require_known(words, capsys, monkeypatch)
    if block.page in RECIPES or any(" ".join(words).startswith(start) for start in NOT_RUN):
        return
    monkeypatch.chdir(workspace)
    code, text = ran(words[1:], capsys)
    assert code == 0, f"{block}: {' '.join(words)} ends with {code}\n{text}"


def test_every_exception_is_used() -> None:
    commands_ = [" ".join(words) for _, words in OURS]
    unused = [start for start in NOT_RUN if not any(command.startswith(start) for command in commands_)]
    assert not unused


@pytest.mark.parametrize(("page", "command"), INLINE)
def test_a_command_in_a_sentence(
    page: str, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [word.strip("[]") for word in command.split()]
    if re.fullmatch(r"[a-z]+", words[1]):
        require_known(words, capsys, monkeypatch)


@pytest.mark.parametrize(
    ("block", "words"),
    [(block, words) for block, words in SHELL if words[0] != "caramba"],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_other_programs_are_given_is_there(block: Block, words: list[str]) -> None:
    program = Path(words[0]).name
    assert program in TOOLS | ENGINES or (ROOT / words[0]).exists(), f"{block}: {words[0]}"
    if program == "make":
        targets = [word for word in words[1:] if "=" not in word]
        makefile = (ROOT / "Makefile").read_text()
        assert all(re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE) for target in targets), f"{block}"
    for word in words[1:]:
        name = word.partition("[")[0]  # of a distribution with an extra
        if program == "pip" and re.fullmatch(r"caramba(-\w+)*", name):
            assert name in DISTRIBUTIONS or name.startswith("caramba-plugin-"), f"{block}: {name}"
        elif program == "pip" and name.startswith("caramba_"):
            assert (ROOT / name / "pyproject.toml").exists(), f"{block}: there is no distribution in {name}"
        elif "/" in name and "..." not in name and not name.startswith((".venv/", "caramba-plugin-")):
            assert any(ROOT.glob(name)), f"{block}: there is no {name}"


def test_make_knows_what_pages_name() -> None:
    targets = {target for page in PAGES for target in re.findall(r"`make (\w+)", page.read_text(encoding="utf-8"))}
    for target in targets:
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)
