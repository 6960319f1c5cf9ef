"""``bench/choices.py``: the rules by which questions of multiple choice are made, and the tasks that lm-eval reads."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from bench import choices

TEXT = " ".join(f"word{(at * at) % 211}" for at in range(900))


def right(question: choices.Question) -> str:
    assert len(set(question["choices"])) == 4
    answer: str = question["choices"][question["label"]]
    return answer


def test_a_cloze_is_followed_by_what_stands_there() -> None:
    made = choices.cloze(TEXT, 30)
    assert made == choices.cloze(TEXT, 30)
    assert made[:10] == choices.cloze(TEXT, 10)
    for question in made:
        assert f"{question['question']} {right(question)}" in TEXT
        assert all(choice in TEXT and len(choice.split()) == 12 for choice in question["choices"])
    assert {question["label"] for question in made} == {0, 1, 2, 3}


def test_wrong_orders_have_the_same_words() -> None:
    for question in choices.order(TEXT, 20):
        assert f"{question['question']} {right(question)}" in TEXT
        assert len({tuple(sorted(choice.split())) for choice in question["choices"]}) == 1
    assert choices.order("same " * 200, 5) == []


def test_sums_are_right() -> None:
    for question in choices.arithmetic(50):
        *examples, (a, b, result) = re.findall(r"(\d+) \+ (\d+) =(?: (\d+))?", question["question"])
        assert len(examples) == 6 and result == ""
        assert all(int(one) + int(other) == int(total) for one, other, total in examples)
        assert right(question) == str(int(a) + int(b))


def test_a_list_is_copied() -> None:
    for question in choices.copying(20):
        first, second, last = question["question"].split("\n")
        assert first == second
        assert f"{first} ".startswith(f"{last} {right(question)} ")
        assert set(question["choices"]) <= set(first.split())


def test_a_text_may_be_too_short() -> None:
    with pytest.raises(SystemExit, match="too short"):
        choices.cloze("a few words", 1)


def test_lm_eval_reads_the_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = pytest.importorskip("lm_eval.tasks")
    (tmp_path / "verse.txt").write_text(TEXT)
    choices.main([str(tmp_path / "tasks"), str(tmp_path / "verse.txt"), "--questions", "5"])
    names = capsys.readouterr().out.split()
    assert names == ["cloze_verse", "order_verse", "arithmetic", "copying"]
    manager = tasks.TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
    assert set(names) <= set(manager.all_tasks)
    rows = [json.loads(line) for line in (tmp_path / "tasks" / "copying.jsonl").read_text().splitlines()]
    assert rows == choices.copying(5)
    assert os.sep in (tmp_path / "tasks" / "copying.yaml").read_text()  # the data are named by their whole path
