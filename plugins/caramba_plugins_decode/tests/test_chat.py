"""``caramba chat``: turns, what is kept between them, and a terminal."""

from __future__ import annotations

import os
import pty
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from caramba_plugins_decode.chatting import Chat
from caramba_plugins_decode.generating import Wanted
from caramba_plugins_decode.session import Session
from caramba_plugins_decode.source import Opening, TextModel, open_text_model
from caramba_plugins_decode.speculative import SpeculativeSession
from caramba_plugins_standard.chat_template import ChatTemplate, chat_template_of
from caramba_plugins_standard.generation import generate

from caramba_core.errors import InputError

from .conftest import Ran, write_checkpoint

Caramba = Callable[..., Ran]


def chat_of(model: TextModel, system: str | None = None, most: int = 12) -> Chat:
    return Chat(
        model, Session(model), chat_template_of(model.name, model.companions), Wanted(max_new_tokens=most), system
    )


def prefilled(chat: Chat) -> int:
    assert isinstance(chat.texts, Session)
    return chat.texts.text.prefilled


def encoded(chat: Chat, text: str) -> list[int]:
    return chat.model.tokenizer.encode(text, special_tokens=True)


def test_turns_go_on_where_the_last_one_ended(opened: TextModel) -> None:
    chat = chat_of(opened, "Be brief.")
    first = "".join(chat.ask("The sea?"))
    system = "<|im_start|>system\nBe brief.<|im_end|>\n"
    prompt = encoded(chat, f"{system}<|im_start|>user\nThe sea?<|im_end|>\n<|im_start|>assistant\n")
    assert prefilled(chat) == len(prompt)
    assert chat.messages[-1] == {"role": "assistant", "content": first}
    said = generate(opened.model, torch.tensor([prompt]), 12)[0].tolist()
    assert first == opened.tokenizer.decode(said[len(prompt) :])

    second = "".join(chat.ask("And the land?"))
    new = encoded(chat, "<|im_end|>\n<|im_start|>user\nAnd the land?<|im_end|>\n<|im_start|>assistant\n")
    assert prefilled(chat) == len(prompt) + 1 + len(new), "the last token of the answer was in no cache yet"
    out = generate(opened.model, torch.tensor([said + new]), 12)[0, len(said + new) :].tolist()
    assert second == opened.tokenizer.decode(out)

    chat.reset()
    assert chat.messages == [{"role": "system", "content": "Be brief."}]
    assert "".join(chat.ask("The sea?")) == first


def test_a_template_that_changes_what_was_said(opened: TextModel) -> None:
    """Answers are trimmed, and only the last message is shown: the cache keeps what is still there."""
    template = "{% for m in messages[-1:] %}{{ '<|im_start|>' + (m.content | trim) + '<|im_end|>' }}{% endfor %}"
    chat = Chat(opened, Session(opened), ChatTemplate(template, {}, "it"), Wanted(max_new_tokens=12))
    for question in ("The sea?", "The land?", " The sea?"):
        ids = encoded(chat, f"<|im_start|>{question.strip()}<|im_end|>")
        expected = generate(opened.model, torch.tensor([ids]), 12)[0, len(ids) :].tolist()
        assert "".join(chat.ask(question)) == opened.tokenizer.decode(expected)


def test_a_stopped_answer_stays(opened: TextModel) -> None:
    chat = chat_of(opened, most=60)
    pieces = []
    for piece in chat.ask("The sea?"):
        pieces.append(piece)
        chat.stopped = len(pieces) >= 5
    assert chat.finish == "interrupted" and chat.speed.tokens == 5
    assert chat.messages[-1]["content"] == "".join(pieces)
    before, chat.stopped = prefilled(chat), False
    new = encoded(chat, "<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n")
    assert len("".join(chat.ask("And?"))) > 5
    assert prefilled(chat) == before + 1 + len(new)


def test_a_draft_says_the_same(opened: TextModel, draft: Path) -> None:
    small = open_text_model(str(draft), Opening(device="cpu", dtype="float64"))
    plain = chat_of(opened)
    drafted = Chat(opened, SpeculativeSession(opened, small), plain.template, plain.wanted)
    for question in ("The sea?", "And the land?", "It was."):
        assert "".join(plain.ask(question)) == "".join(drafted.ask(question))


def test_a_message_that_cannot_be_is_not_kept(opened: TextModel) -> None:
    chat = chat_of(opened)
    "".join(chat.ask("The sea?"))
    kept = list(chat.messages)
    with pytest.raises(InputError, match="and the model a context of 256"):
        list(chat.ask("the " * 300))
    assert chat.messages == kept


def test_lines_of_a_pipe(caramba: Caramba, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "said").write_text("\nThe sea?\n   \n/reset\n/nothing\nThe sea?\n/exit\nnever\n")
    with (tmp_path / "said").open() as said:
        monkeypatch.setattr(sys, "stdin", said)
        code, out, err = caramba("chat", checkpoint, "--max-new-tokens", 6, "--device", "cpu")
    first, second = out[: len(out) // 2], out[len(out) // 2 :]
    assert code == 0 and first == second, "both turns are the first of a chat"
    assert "[the chat begins anew]" in err and "[there is no command /nothing" in err and "12 tokens at" in err


def test_a_checkpoint_without_a_template(caramba: Caramba, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", template=None)
    code, out, err = caramba("chat", folder)
    assert (code, out) == (2, "") and "has no chat template" in err and "caramba generate" in err
    folder = write_checkpoint(
        tmp_path / "other",
        template="{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}",
    )
    code, _, err = caramba("chat", folder, "--system", "Be brief.")
    assert code == 2 and "its chat template refuses the chat: no system" in err


class Terminal:
    """A program in a pseudo-terminal."""

    def __init__(self, *arguments: str) -> None:
        self.child, self.end = pty.fork()
        if self.child == 0:
            os.environ["OMP_NUM_THREADS"] = "1"
            os.execv(sys.executable, [sys.executable, "-m", "caramba_core", *arguments])
        self.seen = ""

    def wait_for(self, text: str, seconds: float = 120.0) -> str:
        """What is written up to a text, which is taken away."""
        until = time.monotonic() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self.end], [], [], max(0.0, until - time.monotonic()))
            assert ready, f"{text!r} did not come: {self.seen!r}"
            try:
                self.seen += os.read(self.end, 4096).decode(errors="replace")
            except OSError:  # the program has ended
                assert text in self.seen, f"{text!r} did not come: {self.seen!r}"
        before, _, self.seen = self.seen.partition(text)
        return before

    def press_until(self, key: str, text: str) -> str:
        """The same, pressing a key again and again: a signal is lost that comes just before the program waits."""
        said = ""
        for _ in range(60):
            self.type(key)
            ready, _, _ = select.select([self.end], [], [], 2.0)
            while ready and text not in self.seen:
                try:
                    self.seen += os.read(self.end, 4096).decode(errors="replace")
                except OSError:  # the program has ended
                    break
                ready, _, _ = select.select([self.end], [], [], 2.0)
            if text in self.seen:
                said, _, self.seen = self.seen.partition(text)
                return said
        raise AssertionError(f"{text!r} did not come: {self.seen!r}")

    def type(self, text: str) -> None:
        os.write(self.end, text.encode())

    def ended(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1])


def test_a_terminal(tmp_path: Path) -> None:
    """Ctrl-C stops an answer and keeps the chat; at the prompt a second one leaves."""
    folder = write_checkpoint(tmp_path / "model", max_position_embeddings=100_000)
    terminal = Terminal("chat", str(folder), "--device", "cpu", "--max-new-tokens", "90000")
    try:
        terminal.wait_for("> ")
        terminal.type("\n")
        terminal.wait_for("> ")
        terminal.type("The sea?\n")
        terminal.wait_for("\n")
        assert select.select([terminal.end], [], [], 120.0)[0], "no answer begins"
        terminal.type("\x03")
        terminal.wait_for("[stopped]")
        terminal.wait_for("> ")
        terminal.type("/reset\n")
        terminal.wait_for("[the chat begins anew]")
        terminal.wait_for("> ")
        said = terminal.press_until("\x03", "MiB]")
        assert "[Ctrl-C once more, or /exit, ends the chat]" in said
        assert terminal.ended() == 0
    except BaseException:
        os.kill(terminal.child, signal.SIGKILL)
        raise
