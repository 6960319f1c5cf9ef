"""``caramba samples``: how texts begin and go on, what is left by a call that ended early, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from caramba_plugins_decode.samples import spoken_ids
from caramba_plugins_decode.source import Opening, open_text_model
from caramba_plugins_standard.datasets import TokenArray
from caramba_plugins_standard.generation import Prompt, generate, generate_stream
from caramba_plugins_standard.modes import Sampling

from .conftest import SPECIAL, Ran, write_checkpoint

Caramba = Callable[..., Ran]
FIXED = ("--device", "cpu", "--dtype", "float64", "--count", 5, "--length", 12)


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model to which all tokens are about equally likely, those that end a text, too."""
    folder: Path = write_checkpoint(tmp_path_factory.mktemp("writer"), scale=0.02)
    return folder


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_texts_are_those_of_their_seeds(caramba: Caramba, writer: Path, tmp_path: Path, batch_size: int) -> None:
    out = tmp_path / "deep" / "own.npy"
    words = ("-o", out, "--seed", 7, "--top-k", 40, "--batch-size", batch_size, *FIXED)
    code, printed, err = caramba("samples", writer, *words)
    assert code == 0 and not printed
    assert "wrote" in err and "5 texts of 12 tokens" in err
    ids, model = np.load(out), open_text_model(str(writer), Opening(device="cpu", dtype="float64"))
    texts = torch.from_numpy(ids.astype(np.int64)).reshape(5, 12)
    assert set(texts[:, 0].tolist()) <= set(spoken_ids(model.tokenizer, model.graph.vocab_size))
    for number, text in enumerate(texts):
        alone = generate(model.model, text[None, :1], 11, sampling=Sampling(temperature=1.0, top_k=40), seed=7 + number)
        assert alone[0].tolist() == text.tolist()
    note = json.loads(out.with_name("own.npy.json").read_text())
    assert note["tokenizer"] == model.tokenizer.identity and note["tokens"] == 60
    assert len(TokenArray(path=str(out)).open(tmp_path, model.tokenizer).ids) == 60


def test_first_tokens_stand_for_text(writer: Path) -> None:
    model = open_text_model(str(writer), Opening(device="cpu"))
    found = spoken_ids(model.tokenizer, model.graph.vocab_size + 9)
    special = {model.tokenizer.encode(text, special_tokens=True)[0] for text in SPECIAL}
    assert len(special) == 3 and special.isdisjoint(found)
    assert set(found) | special == set(range(model.graph.vocab_size))


def test_a_call_that_ended_early_is_gone_on_with(
    caramba: Caramba, writer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole.npy", tmp_path / "own.npy"
    assert caramba("samples", writer, "-o", whole, *FIXED)[0] == 0
    taken: list[Prompt] = []

    def dies(*args: object, **settings: object) -> object:
        texts = generate_stream(*args, **settings)  # type: ignore[arg-type]
        yield next(texts)
        yield next(texts)
        raise KeyboardInterrupt

    monkeypatch.setattr("caramba_plugins_decode.samples.generate_stream", dies)
    assert caramba("samples", writer, "-o", out, *FIXED)[0] != 0
    assert not out.exists()

    def watched(model: object, prompts: list[Prompt], *args: object, **settings: object) -> object:
        taken.extend(prompts)
        return generate_stream(model, prompts, *args, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr("caramba_plugins_decode.samples.generate_stream", watched)
    other, left = tmp_path / "deep" / "own.npy", tmp_path / ".own.npy.partial"
    other.parent.mkdir()
    for part in (left, left.with_name(f"{left.name}.json")):
        shutil.copy(part, other.parent)
    assert caramba("samples", writer, "-o", other, *FIXED, "--count", 1)[0] == 0  # another array: begun anew
    assert len(np.load(other)) == 12 and len(taken) == 1
    taken.clear()
    shutil.rmtree(other.parent)
    code, _, err = caramba("samples", writer, "-o", out, *FIXED)
    assert code == 0 and len(taken) == 3 and "2 of them from a call before" in err
    assert np.array_equal(np.load(out), np.load(whole))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("own.npy", "own.npy.json", "whole.npy", "whole.npy.json")
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("-o", "own.txt"), "does not end in .npy"),
        (("-o", "there.npy"), "exists already"),
        (("-o", "own.npy", "--length", 257), "longer than the context"),
        (("-o", "own.npy", "--temperature", 0), "greedy texts"),
    ],
)
def test_what_is_refused(
    caramba: Caramba,
    writer: Path,
    tmp_path: Path,
    options: tuple[object, ...],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.npy").touch()
    code, _, err = caramba("samples", writer, *options)
    assert code == 2 and said in " ".join(err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["there.npy"]
