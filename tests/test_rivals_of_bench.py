"""``bench/rivals.py`` token by token, and ``bench/kinds.py`` on a tiny teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from caramba_plugins_standard.opening import load_checkpoint, open_checkpoint
from caramba_plugins_standard.rotary import cos_sin, rotate
from torch import Tensor

from bench import kinds
from bench.rivals import Evicting, Rival, Rounded, TransMLA, Window, attention, attentions, bytes_of, put_in, rounded
from caramba_core.errors import InputError
from caramba_core.lowering import lower
from caramba_core.manifest.load import load_manifest
from caramba_core.nn.build import build
from tests.run.workspace import make_workspace

BATCH, HEADS, GROUPS, TOKENS, WIDTH = 2, 4, 2, 43, 8
SCALE = 0.3


def turn(x: Tensor) -> Tensor:
    frequencies = 100.0 ** -torch.linspace(0, 1, WIDTH // 2, dtype=torch.float64)
    return rotate(x, *cos_sin(frequencies, torch.arange(x.shape[2])))


def drawn(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values."""
    random = torch.Generator().manual_seed(seed)
    shapes = [(BATCH, heads, TOKENS, WIDTH) for heads in (HEADS, GROUPS, GROUPS)]
    query, key, value = (torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes)
    return query, key, value


def one_by_one(query: Tensor, key: Tensor, value: Tensor, seen: dict[tuple[int, int, int], list[int]]) -> Tensor:
    """Each query ``(b, g, t)`` attends to the keys that are listed for it."""
    mixed = torch.zeros_like(query)
    for (b, g, t), keys in seen.items():
        for h in range(g * HEADS // GROUPS, (g + 1) * HEADS // GROUPS):
            weights = (SCALE * key[b, g, keys] @ query[b, h, t]).softmax(0)
            mixed[b, h, t] = weights @ value[b, g, keys]
    return mixed


def everywhere(keys: list[list[int]]) -> dict[tuple[int, int, int], list[int]]:
    return {(b, g, t): keys[t] for b in range(BATCH) for g in range(GROUPS) for t in range(TOKENS)}


@pytest.mark.parametrize("rival", [Window(1.0), Evicting(1.0, "observed", 8), Rounded(4, 8, 64)], ids=["w", "e", "r"])
def test_a_rival_that_loses_nothing_is_the_attention(rival: Rival) -> None:
    query, key, value = drawn()
    plain = attention(turn(query), turn(key), value, SCALE)
    torch.testing.assert_close(rival.attend("", query, key, value, turn, SCALE), plain)
    assert rival.bytes(TOKENS, GROUPS, WIDTH) == 2 * 2 * GROUPS * WIDTH * TOKENS


def test_a_window_sees_the_first_and_the_last_tokens() -> None:
    query, key, value = drawn(1)
    rival = Window(12 / TOKENS, sinks=3)
    listed = [sorted({*range(min(3, t + 1)), *range(max(0, t - 8), t + 1)}) for t in range(TOKENS)]
    expected = one_by_one(turn(query), turn(key), value, everywhere(listed))
    torch.testing.assert_close(rival.attend("", query, key, value, turn, SCALE), expected)
    assert rival.bytes(TOKENS, GROUPS, WIDTH) == 2 * 2 * GROUPS * WIDTH * 12


@pytest.mark.parametrize("by_channel", [False, True])
def test_rounding_behind_a_part_in_full(by_channel: bool) -> None:
    query, key, value = drawn(2)
    rival = Rounded(2, 4, 12, by_channel=by_channel)
    turned, expected = turn(key), torch.zeros_like(query)
    for t in range(TOKENS):
        old = t // 12 * 12
        far = turned[:, :, :old]
        far = rounded(far.transpose(2, 3), 2, 4).transpose(2, 3) if by_channel else rounded(far, 2, 4)
        keys = torch.cat([far, turned[:, :, old : t + 1]], dim=2)
        values = torch.cat([rounded(value[:, :, :old], 2, 4), value[:, :, old : t + 1]], dim=2)
        scores = torch.einsum("bgmd,bgsd->bgms", turn(query)[:, :, t].unflatten(1, (GROUPS, -1)), keys) * SCALE
        expected[:, :, t] = torch.einsum("bgms,bgsd->bgmd", scores.softmax(-1), values).flatten(1, 2)
    torch.testing.assert_close(rival.attend("", query, key, value, turn, SCALE), expected)
    each = 2 * GROUPS * WIDTH
    assert rival.bytes(TOKENS, GROUPS, WIDTH) == each * ((TOKENS - 12) * (2 / 8 + 4 / 4) + 12 * 2)


@pytest.mark.parametrize("score", ["observed", "snapkv", "knorm"])
def test_dropping_by_a_score(score: Literal["observed", "snapkv", "knorm"]) -> None:
    query, key, value = drawn(3)
    rival, chunk = Evicting(20 / TOKENS, score, chunk=5), 5
    turned_query, turned_key = turn(query), turn(key)
    seen: dict[tuple[int, int, int], list[int]] = {}
    for b in range(BATCH):
        for g in range(GROUPS):
            kept, mass = list[int](), dict[int, float]()
            for first in range(0, TOKENS, chunk):
                now = list(range(first, min(first + chunk, TOKENS)))
                kept += now
                recent = dict.fromkeys(kept, 0.0)
                for t in now:
                    seen[b, g, t] = [at for at in kept if at <= t]
                    for h in range(g * 2, g * 2 + 2):
                        weights = (SCALE * turned_key[b, g, seen[b, g, t]] @ turned_query[b, h, t]).softmax(0)
                        for at, weight in zip(seen[b, g, t], weights.tolist(), strict=True):
                            recent[at] += weight / 2
                mass = {at: mass.get(at, 0.0) + recent[at] for at in kept}
                old, last = kept[: -len(now)], len(now) + first
                keeps = 20 - min(chunk, TOKENS - last)
                worth = {}
                for place, at in enumerate(kept):
                    near = kept[max(0, place - 2) : place + 3]
                    by = {"observed": mass[at] / (last - at), "snapkv": sum(recent[one] for one in near)}
                    worth[at] = by.get(score, -float(turned_key[b, g, at].norm()))
                if len(kept) > keeps:
                    best = sorted(old, key=worth.__getitem__, reverse=True)[: keeps - len(now)]
                    kept = [*sorted(best), *now]
    expected = one_by_one(turned_query, turned_key, value, seen)
    torch.testing.assert_close(rival.attend("", query, key, value, turn, SCALE), expected, rtol=1e-5, atol=1e-6)
    assert max(map(len, seen.values())) == 20
    assert rival.bytes(TOKENS, GROUPS, WIDTH) == 2 * 2 * GROUPS * WIDTH * 20


def test_the_start_of_transmla() -> None:
    query, key, value = drawn(4)
    exact, unturned = TransMLA(GROUPS * WIDTH, turned=GROUPS), TransMLA(2 * GROUPS * WIDTH - WIDTH)
    for rival in (exact, unturned):
        rival.prepare("", *(part.transpose(1, 2).flatten(0, 1) for part in (key, value)))
        plain = attention(query, key, value, SCALE)
        got = rival.attend("", query, key, value, lambda one: one, SCALE)
        torch.testing.assert_close(got, plain, rtol=1e-4, atol=1e-5)  # nothing is lost where nothing turns
    plain = attention(turn(query), turn(key), value, SCALE)
    torch.testing.assert_close(exact.attend("", query, key, value, turn, SCALE), plain, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(unturned.attend("", query, key, value, turn, SCALE), plain, atol=1e-2)
    assert unturned.bytes(TOKENS, GROUPS, WIDTH) == 2 * TOKENS * 2 * GROUPS * WIDTH


def test_rounding_is_off_by_half_a_step() -> None:
    values = torch.randn(3, 40, generator=torch.Generator().manual_seed(5))
    for bits in (2, 4, 8):
        blocks = values.unflatten(-1, (-1, 8))
        step = (blocks.amax(-1) - blocks.amin(-1)) / (2**bits - 1)
        off = (rounded(values, bits, 8) - values).unflatten(-1, (-1, 8)).abs().amax(-1)
        assert (off <= 0.51 * step + 2e-3).all()
    assert rounded(values[:, :0], 4, 8).shape == (3, 0)


def test_one_command_measures_every_rival(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_workspace(tmp_path)
    for kind, seed in (("prose", 1), ("verse", 2)):
        ids = np.random.default_rng(seed).permutation(np.load(tmp_path / "heldout.npy"))
        np.save(tmp_path / f"heldout_{kind}.npy", ids)
    (tmp_path / "kinds.json").write_text(json.dumps({"kinds": {"prose": {}, "verse": {}}}))
    teacher = str(tmp_path / "teacher")
    kinds.main([teacher, str(tmp_path), "--context", "192", "--tokens", "400", "--device", "cpu"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    model = load_checkpoint(open_checkpoint(teacher), "cpu", "float32")
    assert [line["name"] for line in lines] == [*kinds.CACHES, *kinds.rivals(model)]
    for line in lines:
        assert list(line["ratio"]) == ["prose", "verse", "austen", "mean", "worst"]
        three = [line["ratio"][kind] for kind in ("prose", "verse", "austen")]
        assert line["ratio"]["worst"] == max(three)
        assert line["ratio"]["mean"] == pytest.approx(np.prod(three) ** (1 / 3), abs=2e-5)
        assert line["top1"]["worst"] == min(line["top1"][kind] for kind in ("prose", "verse", "austen"))
        assert len(line["kl_by_position"]) == 4
        assert line["kl"]["mean"] > 0 and line["tokens_a_kind"] == 384
        assert line["cache_bytes"] < 2 * 2 * sum(one.n_kv_heads * one.head_dim for one in attentions(model).values())
    by_name = {line["name"]: line for line in lines}
    assert by_name["kivi2"]["kl"]["mean"] > by_name["kivi4"]["kl"]["mean"]


def test_windows_are_as_long_as_bytes_let_them_be(tmp_path: Path) -> None:
    windows = "{type: sliding_window, window: 3, sinks: 2, n_heads: 4, n_kv_heads: 2, head_dim: 8, o_bias: true}"
    text = (
        "version: 1\nname: w\nmodel: {type: transformer, embedder: {type: token, vocab_size: 64, d_model: 32}, "
        f"topology: {{type: stacked, layers: [{{type: nested, name: blocks, repeat: 2, layers: [{windows}]}}]}}}}\n"
    )
    (tmp_path / "w.yml").write_text(text)
    model = build(lower(load_manifest(tmp_path / "w.yml").manifest.model), seed=0)
    for most, window in ((4000, 64), (20, 8)):  # 2 bytes of each of 64 values of 10 tokens, over 64 tokens
        changed = kinds.with_windows(model, "full", most, 64)
        assert changed is model
        assert {node.config.window for node in model.graph.attentions().values()} == {window}  # type: ignore[attr-defined]
        assert {m.config.window for m in model.modules() if hasattr(m, "step")} == {window}  # type: ignore[union-attr]
    with pytest.raises(InputError, match="takes more than 3 bytes"):
        kinds.with_windows(model, "full", 3, 64)


def test_a_rival_by_its_bytes(tmp_path: Path) -> None:
    make_workspace(tmp_path)
    model = load_checkpoint(open_checkpoint(str(tmp_path / "teacher")), "cpu", "float32").eval()
    whole = kinds.cached(model, "full", 64)
    found = kinds.rival(model, f"window@{whole / 4:.0f}")
    assert isinstance(found, Window)
    assert bytes_of(model, found, 64) == whole / 4
    assert kinds.rival(model, "int4@100") is None and kinds.rival(model, "window@few") is None
    with pytest.raises(InputError, match="this model has none"):
        kinds.with_windows(model, "full", 100, 64)


def test_a_rival_is_put_into_every_attention_and_taken_out_again(tmp_path: Path) -> None:
    make_workspace(tmp_path)
    model = load_checkpoint(open_checkpoint(str(tmp_path / "teacher")), "cpu", "float32").eval()
    tokens = torch.arange(60)[None]
    with torch.inference_mode():
        before = model(tokens)
        assert not torch.allclose(put_in(model, Window(0.2))(tokens), before)
        torch.testing.assert_close(put_in(model, Window(1.0))(tokens), before)
        torch.testing.assert_close(put_in(model, TransMLA(48, turned=2), tokens)(tokens), before, rtol=1e-3, atol=1e-3)
    assert bytes_of(model, Window(0.5), 64) == sum(2 * o.n_kv_heads * o.head_dim for o in attentions(model).values())
