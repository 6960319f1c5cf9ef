"""Mixtures: shares, epochs, orders that need no state, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from caramba_plugins_standard.arrays import ArrayTokens, Shard
from caramba_plugins_standard.datasets import Mixture, MixturePart, TokenArray
from caramba_plugins_standard.mixtures import MixedTokens
from caramba_plugins_standard.modes import Train
from caramba_plugins_standard.pretrain import Pretrain
from caramba_plugins_standard.training import Strategy, Training
from caramba_plugins_standard.training.orders import Interleaving, permuted
from caramba_plugins_standard.training.windows import Windows
from hypothesis import given, settings
from hypothesis import strategies as st

from caramba_core.cli import main
from caramba_core.datasets import Tokens
from caramba_core.errors import InputError, InvalidValue
from tests.plugins.test_hooks_in_runs import MANIFEST


@given(count=st.integers(1, 300), keys=st.lists(st.integers(0, 2**64 - 1), min_size=4, max_size=4))
def test_a_permutation_takes_every_number_once(count: int, keys: list[int]) -> None:
    assert sorted(permuted(index, count, keys) for index in range(count)) == list(range(count))


def test_a_permutation_looks_drawn() -> None:
    """Places neither follow each other nor stay near where they were."""
    count, keys = 10_000_000, np.random.SeedSequence([3, 0]).generate_state(4, np.uint64).tolist()
    found = np.array([permuted(index, count, keys) for index in range(4000)])
    assert abs(np.corrcoef(np.arange(4000), found)[0, 1]) < 0.06
    assert abs(np.corrcoef(found[1:], found[:-1])[0, 1]) < 0.06
    tenths = np.bincount(found * 10 // count, minlength=10)
    assert ((tenths - 400) ** 2 / 400).sum() < 30  # chi-squared of 9 degrees of freedom: 1 in 2,000


weights_drawn = st.lists(st.floats(0.001, 1.0), min_size=1, max_size=6)


@settings(deadline=None)
@given(weights=weights_drawn, seed=st.integers(0, 9))
def test_each_sample_knows_how_many_of_its_part_came_before(weights: list[float], seed: int) -> None:
    interleaving, seen = Interleaving(weights, seed), Counter[int]()
    for index in range(300):
        part, place = interleaving.place(index)
        assert place == seen[part]
        seen[part] += 1


def test_a_distant_sample_is_found_at_once() -> None:
    """In far fewer steps than there are samples before it: walking there would take years."""
    interleaving = Interleaving([0.7, 0.2, 0.1], 0)
    for index in (10**12, 10**18):
        part, place = interleaving.place(index)
        assert place == pytest.approx(index * [0.7, 0.2, 0.1][part], rel=1e-9)
        nearby = [interleaving.place(index + ahead) for ahead in range(1, 200)]
        assert next(there for one, there in nearby if one == part) == place + 1


@pytest.mark.parametrize("weights", [(1.0,), (0.5, 0.5), (3, 2, 1), (0.9, 0.1), (0.6, 0.25, 0.1, 0.05), (2, 1e-2)])
@pytest.mark.parametrize("first", [0, 12_345, 10**15])
def test_shares_hold_over_any_ten_thousand_samples(weights: tuple[float, ...], first: int) -> None:
    """Within 1 % of each share, or two samples where that is less."""
    interleaving = Interleaving(weights, 1)
    found = Counter(interleaving.place(index)[0] for index in range(first, first + 10_000))
    for part, weight in enumerate(weights):
        expected = 10_000 * weight / sum(weights)
        assert abs(found[part] - expected) <= max(0.01 * expected, 2)


def source(first: int, windows: int) -> Tokens:
    """Windows of 5 tokens whose ids say where they stand."""
    return Tokens(ids=np.arange(first, first + 5 * windows + 1), tokenizer=None, origin=f"from {first}")


def test_parts_have_epochs_of_their_own() -> None:
    tokens = MixedTokens.of([(3.0, source(0, 20)), (1.0, source(1000, 7))])
    windows = Windows(tokens, context=5, seed=0)
    starts = [int(windows.sample(index)[0]) for index in range(400)]
    for low, count in ((0, 20), (1000, 7)):
        of_part = [(start - low) // 5 for start in starts if low <= start < low + 1000]
        epochs = [of_part[at : at + count] for at in range(0, len(of_part) - count, count)]
        assert len(epochs) > 5
        assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs), "another order every time"
    assert len(set(starts[: windows.count - 2])) == windows.count - 2
    fresh = Windows(tokens, context=5, seed=0)
    assert (fresh.batch(123, 7) == windows.batch(123, 7)).all()
    assert [int(Windows(tokens, context=5, seed=1).sample(index)[0]) for index in range(400)] != starts


def test_the_order_of_many_windows_is_not_drawn_ahead(tmp_path: Path) -> None:
    """Ten billion ids; the windows of an epoch differ."""
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<u2", "fortran_order": False, "shape": (10**10,)})
        file.truncate(file.tell() + 2 * 10**10)
    reads: list[int] = []

    class Watched(ArrayTokens):
        def read(self, first: int, last: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
            reads.append(first)
            return np.zeros(last - first, dtype=np.int64)  # holes of a file are slow to read

    windows = Windows(Watched.of([Shard.of(tmp_path / "a.npy")], tokenizer=None, origin="a"), context=1024, seed=0)
    for index in range(0, windows.count, windows.count // 1000):
        windows.sample(index)
    assert len(set(reads)) == len(reads) >= 1000
    assert all(first % 1024 == 0 and first < 10**10 for first in reads)


def test_mixtures_in_mixtures_and_tokenizers(tmp_path: Path) -> None:
    for name in "abc":
        np.save(tmp_path / f"{name}.npy", np.arange(30) + ord(name))
        (tmp_path / f"{name}.npy.json").write_text(json.dumps({"tokenizer": "two" if name == "c" else "one"}))
    a, b, c = (TokenArray(path=f"{name}.npy") for name in "abc")
    inner = Mixture(parts=(MixturePart(weight=1.0, data=a), MixturePart(weight=3.0, data=b)))
    outer = Mixture(parts=(MixturePart(weight=1.0, data=inner), MixturePart(weight=1.0, data=a)))
    tokens = outer.open(tmp_path, None)
    assert isinstance(tokens, MixedTokens)
    assert tokens.weights == (0.25, 0.75, 1.0)
    assert tokens.tokenizer == "one"
    assert tokens.read(25, 65).tolist() == [*range(122, 127), *range(98, 128), *range(97, 102)]
    assert outer.files() == (Path("a.npy"), Path("b.npy"), Path("a.npy"))
    with pytest.raises(InputError, match="different tokenizers"):
        Mixture(parts=(MixturePart(weight=1.0, data=a), MixturePart(weight=1.0, data=c))).open(tmp_path, None)
    with pytest.raises(InputError, match=r"b\.npy holds token id 127 at 29"):
        tokens.checked(127)
    for parts in ((), (MixturePart(weight=1.0, data=a), MixturePart(weight=1e-9, data=b))):
        with pytest.raises(InvalidValue):
            Mixture(parts=parts)


def test_a_run_over_a_mixture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other weights are another run; a held-out mixture is refused."""
    for name in ("a", "b", "held"):
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(ord(name[0])).integers(0, 60, 700).astype("uint16"))
    mixed = "{type: mixture, parts: [{weight: 3, data: a.npy}, {weight: WEIGHT, data: {type: tokens, path: [b.npy]}}]}"
    text = MANIFEST.replace("{train: tokens.npy, heldout: tokens.npy}", f"{{train: {mixed}, heldout: held.npy}}")

    def caramba(text: str, *arguments: str) -> int:
        (tmp_path / "m.yml").write_text(text)
        with pytest.raises(SystemExit) as ended:
            main(["run", str(tmp_path / "m.yml"), "--output", str(tmp_path / "runs"), *arguments])
        return int(ended.value.code or 0)

    assert caramba(text.replace("WEIGHT", "1")) == 0
    kept = tmp_path / "runs/tiny/main/first/manifest.yml"
    assert "../../../../a.npy" in kept.read_text()
    assert "../../../../b.npy" in kept.read_text()
    capsys.readouterr()
    assert caramba(text.replace("WEIGHT", "2"), "--resume") != 0
    assert caramba(text.replace("WEIGHT", "0")) == 2
    assert "weight" in capsys.readouterr().err
    assert caramba(text.replace("heldout: held.npy", f"heldout: {mixed}").replace("WEIGHT", "1"), "--again") == 2
    assert "data.heldout is a mixture" in " ".join(capsys.readouterr().err.split())


def test_documents_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They end at the token that a note names; what cannot keep them apart is refused before a step."""
    for name, end in (("a", 0), ("b", 0), ("c", 1), ("d", None)):
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(5).integers(0, 12, 700).astype("uint16"))
        (tmp_path / f"{name}.npy.json").write_text(json.dumps({} if end is None else {"end_of_text": end}))

    def caramba(train: str, heldout: str = "b.npy", change: tuple[str, str] = ("", "")) -> tuple[int, str]:
        text = MANIFEST.replace("{train: tokens.npy, heldout: tokens.npy}", f"{{train: {train}, heldout: {heldout}}}")
        (tmp_path / "m.yml").write_text(text.replace(*change))
        with pytest.raises(SystemExit) as ended:
            main(["run", str(tmp_path / "m.yml"), "--output", str(tmp_path / "runs"), "--again"])
        return int(ended.value.code or 0), " ".join(capsys.readouterr().err.split())

    def losses() -> list[float]:
        lines = (tmp_path / "runs/tiny/main/first/metrics.jsonl").read_text().splitlines()
        return [line["loss"] for line in map(json.loads, lines) if "loss" in line]

    def of(name: str) -> str:
        return f"{{type: tokens, path: {name}.npy, documents: true}}"

    def mixed(*names: str) -> str:
        return f"{{type: mixture, parts: [{', '.join(f'{{weight: 1, data: {name}}}' for name in names)}]}}"

    assert caramba(of("a"))[0] == 0
    packed = losses()
    assert caramba("a.npy")[0] == 0
    assert losses() != packed
    for others in ((of("a"), of("b")), (of("a"), of("c")), (of("a"), "b.npy")):  # each part ends its own
        assert caramba(mixed(*others))[0] == 0
    for train, heldout, change, words in (
        (of("d"), "b.npy", ("", ""), "nothing says which token ends a document"),
        ("a.npy", of("b"), ("", ""), "data.heldout keeps documents apart"),
        (
            of("a"),
            "b.npy",
            ("type: gqa", "features: 8, type: caramba-plugins-linear:linear_attention"),
            "cannot keep documents of one sequence apart",
        ),
    ):
        code, said = caramba(train, heldout, change)
        assert code == 2
        assert words in said


def test_a_strategy_that_cannot_keep_documents_apart(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(100))
    (tmp_path / "a.npy.json").write_text('{"end_of_text": 0}')
    tokens = TokenArray(path="a.npy", documents=True).open(tmp_path, None)
    for strategy in (Strategy(), Pretrain()):
        run = Train(id="first", mode="train", steps=1, train=Training(strategy=strategy, lr=0.1, context=8))
        if strategy.takes_documents:
            run.check_inputs(tokens, None)
        else:
            with pytest.raises(InvalidValue, match="Strategy does not keep documents apart"):
                run.check_inputs(tokens, None)
