"""What plugins raise, print and wait for, when they are imported and called: it is named, and spoils nothing."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from caramba_core.cli import main
from caramba_core.errors import PluginError
from caramba_core.plugins import guard
from caramba_core.plugins.registry import registry
from tests.plugins.site import ATTENTION, Site
from tests.plugins.test_hooks_in_runs import MANIFEST

HOOKS = "from caramba_core.hookspecs import hookimpl\n"
OUTSIDE = ("KeyboardInterrupt", "SystemExit(0)", "GeneratorExit", "BaseException('x')")


def add(site: Site, text: str, *, hooks: bool = False) -> None:
    entries = {"caramba": {"odd": "odd"}} if hooks else {"caramba.attention": {"odd": "odd:Attention"}}
    site.add("caramba-plugin-odd", entries=entries, modules={"odd": text})


def load() -> object:
    return registry().load(registry().find(("attention",), "odd"))


# ------------------------------------------------------------------------------------------------ what is raised


@pytest.mark.parametrize("fault", OUTSIDE)
def test_an_import(site: Site, fault: str) -> None:
    add(site, f"\nraise {fault}")
    with pytest.raises(PluginError, match=rf"caramba-plugin-odd:odd 1.0 is broken: {fault.split('(')[0]}.*odd.py:2"):
        load()


@pytest.mark.parametrize("hook", ["run_started", "plan_sections"])
@pytest.mark.parametrize("fault", OUTSIDE)
def test_a_hook(site: Site, hook: str, fault: str) -> None:
    add(site, f"{HOOKS}@hookimpl\ndef {hook}():\n    raise {fault}", hooks=True)
    with pytest.raises(PluginError, match=rf"caramba-plugin-odd 1.0 failed in the hook {hook}: {fault.split('(')[0]}"):
        getattr(registry().hooks, hook)(**{"context": None} if hook == "run_started" else {"plan": None})


@pytest.mark.parametrize("fault", OUTSIDE)
def test_an_observer(site: Site, fault: str, caplog: pytest.LogCaptureFixture) -> None:
    add(site, f"{HOOKS}@hookimpl\ndef evaluated():\n    raise {fault}", hooks=True)
    for _ in range(2):
        registry().hooks.evaluated(context=None, step=0, results={})
    (record,) = caplog.records
    assert (
        f"failed in the hook evaluated, which is not called again in this process: {fault.split('(')[0]}"
        in record.getMessage()
    )


INTERRUPTED = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)"


def test_ctrl_c_in_an_import_is_one(site: Site) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        add(site, INTERRUPTED)
        with pytest.raises(KeyboardInterrupt):
            load()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        (site.folder / "odd.py").write_text(ATTENTION)
        assert load()  # nothing was remembered against the plugin
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_in_a_hook_is_one(site: Site) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        body = INTERRUPTED.replace("\n", "\n    ")
        add(site, f"{HOOKS}@hookimpl\ndef evaluated():\n    {body}", hooks=True)
        with pytest.raises(KeyboardInterrupt):
            registry().hooks.evaluated(context=None, step=0, results={})
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_handler_that_a_plugin_sets_stays(site: Site) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        add(site, "import signal\nmine = lambda number, frame: None\nsignal.signal(signal.SIGTERM, mine)" + ATTENTION)
        load()
        assert signal.getsignal(signal.SIGTERM) is sys.modules["odd"].mine
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_command_that_cannot_be_imported(site: Site) -> None:
    site.add(
        "caramba-plugin-odd", entries={"caramba.command": {"odd": "odd:f"}}, modules={"odd": "raise KeyboardInterrupt"}
    )
    ran = site.caramba("odd")
    assert ran.code == 2
    assert "command caramba-plugin-odd:odd 1.0 is broken: KeyboardInterrupt" in ran.err


# ------------------------------------------------------------------------------------------------ what takes long


def test_an_import_that_hangs_is_named_once_and_goes_on(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(guard, "_SLOW", 0.01)
    wait = "import logging, threading\nsaid = threading.Event()\nclass H(logging.Handler):\n    emit = "
    wait += "lambda self, record: said.set()\nh = H()\nlog = logging.getLogger('caramba.plugins')\nlog.addHandler(h)\n"
    add(site, wait + "assert said.wait(60)\nlog.removeHandler(h)\n" + ATTENTION)
    assert load()
    (record,) = caplog.records
    assert record.getMessage().startswith("warning: importing odd of caramba-plugin-odd 1.0 takes more than 0.01 s")
    assert "--no-plugin caramba-plugin-odd" in record.getMessage()


def test_an_import_that_ends_is_not_named(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    timers: list[object] = []

    class Timer(guard.threading.Timer):  # type: ignore[misc, name-defined]
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)
            timers.append(self)

    monkeypatch.setattr(guard.threading, "Timer", Timer)  # type: ignore[attr-defined]
    add(site, ATTENTION)
    assert load()
    (timer,) = timers
    assert timer.finished.is_set()  # type: ignore[attr-defined]
    assert not caplog.records


# ------------------------------------------------------------------------------------------------ what is printed

LOUD = """
import os, subprocess, sys
def shout(where):
    print(where, "prints")
    os.write(1, where.encode() + b" writes\\n")
    subprocess.run([sys.executable, "-c", "print('a child prints')"], check=True)
    subprocess.Popen(["sh", "-c", "echo a child goes on"]).wait()
"""
LOUD_HOOKS = f"{HOOKS}{LOUD}shout('import')\n" + "".join(
    f"@hookimpl\ndef {hook}(): shout('{hook}')\n" for hook in ("graph_lowered", "plan_sections")
)
LOUD_ATTENTION = (
    LOUD
    + ATTENTION
    + "    def weights(self, width):\n        shout('weights')\n        return super().weights(width)\n"
    + "shout('light import')"
)


@pytest.fixture
def loud(site: Site) -> Site:
    site.add(
        "caramba-plugin-loud",
        entries={"caramba": {"loud": "loud_hooks"}, "caramba.attention": {"loud": "loud:Attention"}},
        modules={"loud_hooks": LOUD_HOOKS, "loud": LOUD_ATTENTION},
    )
    (site.folder / "m.yml").write_text(MANIFEST.replace("type: gqa,", "type: loud,"))
    return site


def test_json_on_a_pipe(loud: Site) -> None:
    assert "type: loud" in (loud.folder / "m.yml").read_text()
    ran = loud.caramba("compile", "m.yml", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)[0]["name"]
    for said in ("import prints", "plan_sections writes", "weights prints", "a child prints", "a child goes on"):
        assert said in ran.err


@pytest.mark.parametrize("redirect", ["", "2>&-"])
def test_json_in_a_file(loud: Site, tmp_path: Path, redirect: str) -> None:
    command = f"{sys.executable} -m caramba compile m.yml --json > {tmp_path / 'plan.json'} {redirect}"
    variables = {**os.environ, "PYTHONPATH": str(loud.folder), "XDG_CACHE_HOME": str(loud.cache)}
    assert subprocess.run(command, shell=True, cwd=loud.folder, env=variables, check=False).returncode == 0
    assert json.loads((tmp_path / "plan.json").read_text())


LATE = """
import atexit, os, subprocess, sys, threading
out = sys.__stdout__
def shout(where):
    print(where, "prints")
    print(where, "prints to what was stdout", file=out, flush=True)
    os.write(1, where.encode() + b" writes\\n")
    subprocess.run(["sh", "-c", f"echo a child of {where} prints"], check=True)
def go_on(until):
    while True:
        shout("a thread")
        if until.wait(0.001):
            return
ended = threading.Event()
threading.Thread(target=go_on, args=(ended,)).start()
threading._register_atexit(ended.set)
atexit.register(shout, "the end")
"""


def test_json_beside_a_thread_that_prints_to_the_end(loud: Site) -> None:
    (loud.folder / "loud.py").write_text(LATE + ATTENTION)
    for arguments in (["m.yml"], ["m.yml", "--set", "model.nothing=1"]):
        ran = loud.python(
            f"import sys; sys.argv = {['caramba', 'compile', *arguments, '--json']!r}\n"
            "from caramba_core.cli import main; main()"
        )
        assert ran.code == (0 if len(arguments) == 1 else 2), ran.err
        assert json.loads(ran.out)
        said = ["prints", "prints to what was stdout", "writes"]
        for each in (f"{where} {what}" for where in ("a thread", "the end") for what in said):
            assert each in ran.err
        assert "a child of the end prints" in ran.err


def test_data_of_the_main_thread_alone(site: Site) -> None:
    text = (
        "import threading\nfrom caramba_terminal.output import data_alone\n"
        "with data_alone(to_the_end=False):\n"
        "    thread = threading.Thread(target=print, args=('of a thread',))\n"
        "    thread.start()\n    thread.join()\n    print('data')\n"
        "print('behind it')"
    )
    ran = site.python(text)
    assert ran.out.splitlines() == ["data", "behind it"], ran.err
    assert ran.err.splitlines() == ["of a thread"]


def test_errors_as_data_of_a_loud_plugin(loud: Site) -> None:
    (loud.folder / "loud.py").write_text(LOUD + "shout('light import')\nraise SystemExit(0)")
    ran = loud.caramba("compile", "m.yml", "--json")
    assert ran.code == 2
    assert json.loads(ran.out)["error"] == "ManifestError"


def test_a_closed_stdout(loud: Site) -> None:
    variables = {**os.environ, "PYTHONPATH": str(loud.folder), "XDG_CACHE_HOME": str(loud.cache)}
    command = f"{sys.executable} -m caramba compile m.yml --json >&-"
    ran = subprocess.run(command, shell=True, cwd=loud.folder, env=variables, check=False, capture_output=True)
    assert ran.returncode == 0, ran.stderr
    assert b"rror" not in ran.stderr


def test_a_reader_of_data_that_goes_away(loud: Site) -> None:
    variables = {**os.environ, "PYTHONPATH": str(loud.folder), "XDG_CACHE_HOME": str(loud.cache)}
    command = [sys.executable, "-m", "caramba", "compile", "m.yml", "--json"]
    with subprocess.Popen(
        command, cwd=loud.folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as ran:
        assert ran.stdout is not None
        assert ran.stderr is not None
        ran.stdout.close()
        said = ran.stderr.read()
        assert ran.wait() == 141
    assert b"rror" not in said


@pytest.mark.parametrize("capture", ["capsys", "capfd"])
def test_json_where_output_is_captured(
    loud: Site, capture: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured: pytest.CaptureFixture[str] = request.getfixturevalue(capture)
    monkeypatch.chdir(loud.folder)
    before = sys.stdout
    with pytest.raises(SystemExit) as ended:
        main(["compile", "m.yml", "--json"])
    assert ended.value.code == 0
    assert sys.stdout is before
    os.write(1, b"")  # it leads somewhere
    assert json.loads(captured.readouterr().out)


def test_json_into_a_text_stream(loud: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(loud.folder)
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(SystemExit):
        main(["compile", "m.yml", "--json"])
    assert json.loads(stream.getvalue())


# ------------------------------------------------------------------------------------------------ what hooks are

NO_HOOKS = {
    "async def evaluated(): pass": "is a coroutine",
    "async def evaluated(): yield": "is an asynchronous generator",
    "def evaluated(): yield": "is a generator",
}


@pytest.mark.parametrize(("text", "said"), NO_HOOKS.items())
def test_hooks_that_nothing_would_run(site: Site, text: str, said: str, caplog: pytest.LogCaptureFixture) -> None:
    add(site, f"{HOOKS}@hookimpl\n{text}", hooks=True)
    registry().hooks.evaluated(context=None, step=0, results={})
    (record,) = caplog.records
    assert "plugin caramba-plugin-odd takes no part" in record.getMessage()
    assert f"its hook 'evaluated' {said}" in record.getMessage()


@pytest.mark.parametrize("made", ["later()", "(x for x in ())", "many()"])
@pytest.mark.filterwarnings("ignore:coroutine")
def test_results_that_nothing_would_run(site: Site, made: str, caplog: pytest.LogCaptureFixture) -> None:
    other = "async def later(): pass\nasync def many(): yield\n"
    add(site, f"{HOOKS}{other}@hookimpl\ndef evaluated(): return {made}", hooks=True)
    registry().hooks.evaluated(context=None, step=0, results={})
    assert "which nothing runs" in caplog.records[0].getMessage()


# ------------------------------------------------------------------------------------------------ what is required


@pytest.mark.parametrize(
    ("requires", "state"),
    [
        (["caramba-core<0.1; python_version < '3'"], "ok"),
        (["caramba-core<0.1; python_version >= '3'"], "incompatible"),
        (["caramba-core<0.1; sys_platform == 'plan9'", "caramba-core"], "ok"),
        (["caramba-core>=0", "caramba-core<0.0.1"], "incompatible"),
        (["caramba-core<0.1; extra == 'old'"], "ok"),
        (["caramba-core<0.1; extra == 'old' or python_version >= '3'"], "incompatible"),
    ],
)
def test_markers_of_the_core(site: Site, requires: list[str], state: str) -> None:
    site.add("caramba-plugin-odd", entries={"caramba.attention": {"odd": "odd:Attention"}}, requires=requires)
    assert registry().state(registry().plugins["caramba-plugin-odd"])[0] == state


def test_markers_of_a_missing_module(site: Site) -> None:
    requires = [
        "fancylib<2; python_version < '3'",
        "fancylib>=2; python_version >= '3' and extra == 'fast'",
        "caramba-core",
    ]
    site.add(
        "caramba-plugin-odd",
        entries={"caramba.attention": {"odd": "odd:Attention"}},
        modules={"odd": "import fancylib"},
        requires=requires,
    )
    with pytest.raises(PluginError, match=r"pip install 'caramba-plugin-odd\[fast\]'"):
        load()
