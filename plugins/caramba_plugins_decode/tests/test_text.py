"""Text that comes token by token is the text of all tokens, and ends where it should."""

from __future__ import annotations

import pytest
from caramba_plugins_decode.text import Answer, Detokenizer
from caramba_plugins_llama.tokenizer import HuggingFaceTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from .conftest import TEXT, byte_level, sentence_piece

BYTES = HuggingFaceTokenizer(byte_level(), None)
PIECES = HuggingFaceTokenizer(sentence_piece(), None)
STORY = "the sea. é日🎉 the 語ea"


def pieces_of(tokenizer: HuggingFaceTokenizer, prompt: list[int], ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer, prompt)
    return [*(detokenizer.add(id_) for id_ in ids), detokenizer.flush()]


@pytest.mark.parametrize(("tokenizer", "text"), [(BYTES, TEXT), (PIECES, STORY)], ids=["bytes", "pieces"])
def test_characters_come_whole(tokenizer: HuggingFaceTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    for cut in range(len(ids)):
        before = tokenizer.decode(ids[:cut])
        if before.endswith("\ufffd"):  # no prompt ends inside of a character
            continue
        pieces = pieces_of(tokenizer, ids[:cut], ids[cut:])
        assert "".join(pieces) == tokenizer.decode(ids)[len(before) :]
        assert not any("\ufffd" in piece for piece in pieces)
    shown = pieces_of(tokenizer, [], ids)
    assert sum(map(bool, shown)) > len(ids) / 2, "text waits for no reason"


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_tokens(data: st.DataObject) -> None:
    """Bytes in any order, which are no characters for the most part."""
    ids = data.draw(st.lists(st.integers(0, BYTES.vocab_size - 1), max_size=40))
    assert "".join(pieces_of(BYTES, [], ids)) == BYTES.decode(ids)


def test_bytes_that_never_become_a_character_are_told_at_last() -> None:
    (start,) = [id_ for id_ in range(BYTES.vocab_size) if BYTES.backend.id_to_token(id_) == "ð"]  # the byte F0
    pieces = pieces_of(BYTES, [], [start] * 200)
    assert any(pieces[:-1]) and "".join(pieces) == BYTES.decode([start] * 200)


def answered(text: str, *stops: str, most: int = 10_000, ends: tuple[int, ...] = ()) -> tuple[Answer, list[str]]:
    ids = BYTES.encode(text, special_tokens=True)
    answer = Answer(BYTES, [], most=most, ends=ends, stops=stops)
    pieces = []
    for id_ in ids:
        pieces.append(answer.add(id_))
        if answer.finish is not None:
            break
    else:
        pieces.append(answer.end("interrupted"))
    assert "".join(pieces) == answer.text
    return answer, pieces


def test_an_answer_ends_before_a_stop_text() -> None:
    answer, pieces = answered("The sea was the sea, or the land?", "sea,", "land")
    assert (answer.text, answer.finish, answer.ended_by) == ("The sea was the ", "stop", "sea,")
    assert "The sea was".startswith("".join(pieces[:4])), "what may be the beginning of a stop text is held back"
    answer, _ = answered("one two", "two three")
    assert (answer.text, answer.finish) == ("one two", "interrupted")
    answer, _ = answered("aab aabaac", "aac", "aabaa")
    assert (answer.text, answer.ended_by) == ("aab ", "aabaa")


def test_an_answer_ends_with_its_end_token_or_its_most_tokens() -> None:
    end = BYTES.encode("<|im_end|>", special_tokens=True)[0]
    answer, _ = answered("It was.<|im_end|> More", ends=(end,))
    assert (answer.text, answer.finish, answer.ended_by) == ("It was.", "end", "<|im_end|>")
    answer, _ = answered(TEXT, most=5)
    assert (answer.tokens, answer.finish, answer.text) == (5, "length", BYTES.decode(BYTES.encode(TEXT)[:5]))
    cut = BYTES.encode("日")[:1]
    answer = Answer(BYTES, [], most=1)
    assert answer.add(cut[0]) == answer.text == "\ufffd"


@settings(max_examples=100, deadline=None)
@given(text=st.text("ab \n", max_size=30), stops=st.lists(st.text("ab ", min_size=1, max_size=4), max_size=3))
def test_stops_against_looking_at_the_whole_text(text: str, stops: list[str]) -> None:
    answer, _ = answered(text, *stops)
    # the first stop text that is complete ends the answer: token by token, the one that begins first among those
    found = [text.find(stop) for stop in stops if stop in text]
    if not found:
        assert answer.text == text
    else:
        assert answer.finish == "stop" and text.startswith(answer.text) and len(answer.text) >= min(found)
        assert not any(stop in answer.text for stop in stops)
