"""``caramba init``: a manifest for a checkpoint of every family that is read, which compiles as it stands and runs."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from caramba_plugins_llama.families import FAMILIES
from caramba_plugins_standard.datasets import TextFile
from caramba_plugins_standard.loading import find_loader, lower_checkpoint
from caramba_plugins_standard.quantized import Int4
from caramba_plugins_upcycle.init.sizing import Device, open_texts
from caramba_plugins_upcycle.transplant import CacheBudget, find_transplants

from caramba_core.cli import main
from caramba_core.components import Attention
from caramba_core.errors import ManifestError
from caramba_core.lowered import lower_group
from caramba_core.manifest.load import load_manifest
from caramba_core.plan import plan_manifest
from caramba_core.sites import find_sites
from caramba_core.teachers import reader

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": None,
}
ATTENTIONS = ("dba", "linear_attention", "mla", "sliding_window")
MORE: dict[str, dict[str, Any]] = {
    "deepseek_v3": {
        "num_key_value_heads": 6,
        "q_lora_rank": None,
        "kv_lora_rank": 10,
        "first_k_dense_replace": 4,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
        "head_dim": 4,
        "n_routed_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 1,
    },
    "gemma3_text": {"sliding_window_pattern": 2},
    "smollm3": {"num_hidden_layers": 13},  # enough that patterns of indexes have two digits
}
REFUSED = {
    "mla": {"mistral", "ministral", "phi3", "qwen3", "olmo2", "olmo3", "gemma3_text", "exaone4", "apertus"},
    "linear_attention": {"mistral", "ministral", "phi3"},
}
"""Families of which no attention becomes another one: all have windows, or norms of queries and keys."""

WITHOUT_STARTS = {name for name, family in FAMILIES.items() if family.latent_norm_eps is not None}
"""Families whose attention no installed transplant starts from: it is a latent one already."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tests run side by side, and tiny tensors are slower on two threads than on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random checkpoint of each family, and token ids."""
    transformers = importlib.import_module("transformers")
    logging = importlib.import_module("transformers.utils.logging")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for family, about in FAMILIES.items():
        window = {} if about.window == "never" else {"sliding_window": 40}
        config = transformers.AutoConfig.for_model(family, **{**SIZES, **window, **MORE.get(family, {})})
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder / family)
    np.save(folder / "ids.npy", np.random.default_rng(0).integers(0, 61, 4000).astype(np.uint16))
    (folder / "one").mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / "one" / name).write_bytes((folder / "llama" / name).read_bytes())
    return folder


@pytest.fixture
def init(models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """``caramba init`` in the folder of the models: what it says, where it ends with the code."""
    monkeypatch.chdir(models)

    def init(*arguments: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["init", *arguments])
        captured = capsys.readouterr()
        assert ended.value.code == code, captured.out + captured.err
        return captured.out + captured.err

    return init


def cached(sites: Sequence[Any], role: str) -> int:
    """Cached values per token of one side of sites."""
    configs = [(getattr(site, role).config, getattr(site, role).width_in) for site in sites]
    return sum(entry.values for config, width in configs for entry in config.cache_spec(width).values())


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str, attention: str, init: Callable[..., str], tmp_path: Path) -> None:
    """The manifest compiles before it appears; here it is read again, and each site must have its start."""
    arguments = ("--from", family, "--attention", attention, "--text", "ids.npy", "-o", str(tmp_path / "m.yml"))
    if family in WITHOUT_STARTS:
        said = init(*arguments, code=2)
        assert f"nothing installed starts {attention} from the checkpoint's mla" in said
        assert "expected: a plugin with a transplant from it" in said
        return
    if family in REFUSED.get(attention, ()):
        said = init(*arguments, code=2)
        assert f"no attention of this checkpoint becomes {attention} with 0.5 of its cache" in said
        assert "expected: one of: dba" in said
        assert not (tmp_path / "m.yml").exists()
        return
    said = init(*arguments)
    loaded = load_manifest(tmp_path / "m.yml")
    (group,) = loaded.manifest.groups
    assert group.teacher is not None
    graph = reader("").open(group.teacher.source, tmp_path).graph
    sites = find_sites(graph, lower_group(loaded, group))
    ((_, own),) = find_transplants(sites, None)
    assert own == list(sites)
    kept = len(graph.attentions()) - len(sites)
    assert ("unchanged" in said) == (kept > 0)
    if attention in ("dba", "mla"):
        assert 0.4 <= cached(sites, "student") / cached(sites, "teacher") <= 0.5
    assert f"caramba report runs/{family}/{attention}_0.5x" in said


@pytest.mark.parametrize(
    ("family", "attention"), [("exaone4", "dba"), ("qwen2", "dba"), ("gemma3_text", "sliding_window")]
)
def test_it_runs_as_it_stands(family: str, attention: str, init: Callable[..., str], tmp_path: Path) -> None:
    """Rotary positions in some layers alone, offsets, and windows of several sizes."""
    init("--from", family, "--attention", attention, "--text", "ids.npy", "-o", str(tmp_path / "m.yml"))
    text = (tmp_path / "m.yml").read_text()
    (tmp_path / "m.yml").write_text(text.replace("steps: 24", "steps: 2").replace("steps: 12", "steps: 2"))
    with pytest.raises(SystemExit) as ended:
        main(["run", str(tmp_path / "m.yml"), "--output", str(tmp_path / "runs")])
    assert ended.value.code == 0
    assert (tmp_path / "runs" / family / f"{attention}_0.5x" / "finetune" / "summary.json").exists()


def test_what_it_says_and_writes(init: Callable[..., str], tmp_path: Path) -> None:
    """Sizes with their meaning, layers that differ by pattern, and lines that fit the terminal."""
    said = init("--from", "smollm3", "--text", "ids.npy", "-o", str(tmp_path / "m.yml"))
    lines = said.replace(str(tmp_path), "").splitlines()
    assert [line for line in lines if len(line) > 80] == []
    text = (tmp_path / "m.yml").read_text()
    assert '"blocks.[01245689].attention"' in text and '"blocks.1[02].attention": *a' in text
    assert "# cached values of the semantic keys" in text
    assert "cached per token of a text of 128: 1,664 bytes in the teacher, 832 here" in text
    assert "3,600 tokens to learn from, 400 to measure on" in said


def test_the_checkpoint_at_hand(init: Callable[..., str], models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"there are {len(FAMILIES) + 1} checkpoints in this folder" in init("-o", "any.yml", code=2)
    monkeypatch.chdir(models / "one")
    said = init("-o", "any.yml", "--force")
    assert "none yet: name a text in any.yml" in said
    text = (models / "one" / "any.yml").read_text()
    assert "name: one" in text and "teacher: {source: .}" in text
    line = int(said.partition("line ")[2].partition(",")[0])
    assert "your_tokens.npy" in text.splitlines()[line - 1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--from", "nowhere"], "nowhere does not exist"),
        (["--attention", "dbaa"], "there is no attention 'dbaa', did you mean 'dba'?"),
        (["--attention", "alibi"], "a plugin joins by a transplant gqa_to_alibi"),
        (["--cache", "2x"], "--cache 2x is no share of a cache"),
        (["--cache", "0.0x"], "--cache 0.0x is no share of a cache"),
        (["--cache", "0.01"], "1 cached values hold no rotary keys"),
        (["--with", "layot=free"], "there is no field 'layot', did you mean 'layout'?"),
        (["--with", "layout=fre"], "--with layout=fre: 'fre' is no choice here"),
        (["--with", "layout"], "expected: FIELD=VALUE"),
        (["--with", "sem_dim=3"], "v_dim: 8 is not servable"),
        (["--text", "nowhere.txt"], "nowhere.txt does not exist"),
        (["--heldout", "ids.npy"], "--text names what is learnt from"),
        (["-o", "m.json"], "expected: a name that ends in .yml"),
        (["-o", "none/m.yml"], "there is no folder none"),
    ],
)
def test_what_cannot_be(arguments: list[str], said: str, init: Callable[..., str], models: Path) -> None:
    before = sorted(models.iterdir())
    assert said in init(*([] if "--from" in arguments else ["--from", "llama"]), *arguments, code=2)
    assert sorted(models.iterdir()) == before


def test_nothing_is_replaced_unless_forced(init: Callable[..., str], tmp_path: Path) -> None:
    place = tmp_path / "m.yml"
    place.write_text("mine")
    arguments = ("--from", "llama", "--text", "ids.npy", "-o", str(place))
    assert "--force replaces it" in init(*arguments, code=2)
    assert place.read_text() == "mine"
    init(*arguments, "--force", "--with", "layout=free")
    assert "layout: free" in place.read_text()


def test_a_short_text_gives_short_windows_and_none_is_too_short(init: Callable[..., str], models: Path) -> None:
    np.save(models / "short.npy", np.arange(400, dtype=np.uint16) % 61)
    init("--from", "llama", "--text", "short.npy", "-o", "short.yml", "--force")
    assert "eval: {windows: 2, context: 16}" in (models / "short.yml").read_text()
    np.save(models / "tiny.npy", np.arange(100, dtype=np.uint16) % 61)
    assert "the text is too short" in init("--from", "llama", "--text", "tiny.npy", "-o", "tiny.yml", code=2)


class Letters:
    """A tokenizer of letters."""

    identity, vocab_size, end_of_text, bos, adds_bos = "letters", 61, None, None, False
    stops: frozenset[int] = frozenset()

    def encode_batch(self, texts: Sequence[str], *, special_tokens: bool = False) -> list[list[int]]:
        return [[ord(letter) % 61 for letter in text] for text in texts]


def test_parts_of_a_text_are_counted_where_lines_end(tmp_path: Path, models: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 880 + "\n" + "y" * 218 + "\n" + "z" * 50 + "\n")
    graph = lower_checkpoint(find_loader(models / "llama"))
    texts = open_texts(tmp_path / "a.txt", None, Letters(), graph)  # type: ignore[arg-type] - all that is asked of it
    train, heldout = (
        TextFile(path=str(tmp_path / "a.txt"), part=tuple(each["part"])).open(tmp_path, Letters())  # type: ignore[arg-type]
        for each in (texts.train, texts.heldout)
    )
    assert texts.tokens == (len(train.ids), len(heldout.ids)) != (1036, 115)


def test_sizes_follow_the_memory(init: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an accelerator smaller batches come first, then less that trains; what is still too much is said."""
    for memory, part in ((1 << 40, "batch_size: 8"), (59 << 17, "accumulate: 2"), (1 << 20, "trains: [attention]")):
        device = Device(kind="cuda", called="made up", memory=memory)
        monkeypatch.setattr("caramba_plugins_upcycle.init.writing.device_here", lambda device=device: device)
        said = init("--from", "llama", "--text", "ids.npy", "-o", str(tmp_path / "m.yml"), "--force")
        assert part in (tmp_path / "m.yml").read_text(), said
        assert ("more than this machine should give" in said) == (memory < 2 << 20)


def test_a_share_of_a_cache_in_few_bits_is_of_bytes(init: Callable[..., str], models: Path) -> None:
    """Of the teacher's in 16 bits, scales included."""
    said = init("--from", "llama", "--cache", "0.5x", "--with", "cache=int8", "-o", "few.yml")
    found = re.search(r"in 16 bits -> [\d.]+ \w+ \((0\.\d+)x\)", " ".join(said.split()))
    assert found is not None
    assert 0.4 < float(found[1]) <= 0.5
    assert "bytes in the teacher in 16" in (models / "few.yml").read_text()


def test_proposals_are_the_measured_presets() -> None:
    """At the shapes of the presets the transplants propose their sizes."""
    from caramba_plugins_dba.transplant import GQAToDBA
    from caramba_plugins_linear.transplant import GQAToLinear
    from caramba_plugins_mla.transplant import GQAToMLA
    from caramba_plugins_sliding_window.transplant import GQAToSlidingWindow
    from caramba_plugins_standard.gqa import GroupedQueryAttention
    from caramba_plugins_standard.quantized import Full, Int4, Int8
    from caramba_plugins_standard.rope import Rope

    small = GroupedQueryAttention(n_heads=9, n_kv_heads=3, head_dim=64, rope=Rope())
    large = GroupedQueryAttention(n_heads=32, n_kv_heads=8, head_dim=64, rope=Rope())

    def sizes(transplant: Any, source: Any, share: float, **budget: Any) -> list[Any]:
        made = transplant().propose(source, 0, CacheBudget(share=share, context=1024, **budget))
        return [value for value in made.values() if type(value) is int]

    assert sizes(GQAToDBA, small, 0.5) == [24, 72, 96]
    assert sizes(GQAToDBA, small, 0.25) == [12, 36, 48]
    assert sizes(GQAToDBA, large, 0.5) == [64, 192, 256, 2]
    assert sizes(GQAToDBA, small, 0.5, uniform=False) == [36, 72, 84]
    assert sizes(GQAToDBA, small, 0.25, given={"layout": "free"}) == [20, 36, 40]
    assert sizes(GQAToDBA, small, 0.25, given={"latent": "joint", "cache": Int4()}) == [0, 72, 220]
    assert sizes(GQAToDBA, small, 0.25, given={"latent": "joint", "cache": Int4(block=128)}) == [0, 88, 260]
    assert sizes(GQAToDBA, small, 0.5, given={"latent": "joint", "cache": Int8()}) == [0, 80, 256]
    assert sizes(GQAToDBA, small, 0.5, given={"latent": "joint", "cache": Int4()}) == [0, 96, 288]  # all there are
    assert sizes(GQAToDBA, small, 0.5, given={"latent": "joint", "cache": Full()}) == [0, 48, 144]
    assert sizes(GQAToMLA, small, 0.5) == [128, 64]
    assert sizes(GQAToSlidingWindow, small, 0.5) == [508, 4]
    assert sizes(GQAToLinear, small, 0.5) == [63, 444, 4]


def test_an_attention_that_says_no_sizes(init: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    from caramba_plugins_mla.transplant import GQAToMLA

    monkeypatch.setattr(GQAToMLA, "propose", lambda self, source, width, budget: None)
    said = init("--from", "llama", "--attention", "mla", "-o", "none.yml", code=2)
    assert "caramba-plugins-mla does not say which sizes mla has for a share of a cache" in said


@pytest.mark.parametrize("cache", ["int4", "{type: int4, block: 8}"])
def test_a_storage_among_the_fields(cache: str, init: Callable[..., str], tmp_path: Path) -> None:
    place = tmp_path / "m.yml"
    init("--from", "llama", "--text", "ids.npy", "-o", str(place), "--with", "layout=free", "--with", f"cache={cache}")
    assert f"cache: {cache}" in place.read_text()
    loaded = load_manifest(str(place), fetch=True)
    graph = lower_group(loaded, loaded.manifest.groups[0])
    configs = [node.config for node in graph.attentions().values()]
    assert all(isinstance(config, Attention) and isinstance(config.cache, Int4) for config in configs)


def test_an_attention_without_an_output_bias_starts_without_a_refit(
    init: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from caramba_plugins_mla.transplant import GQAToMLA

    proposed = GQAToMLA.propose
    monkeypatch.setattr(GQAToMLA, "propose", lambda *asked: {**proposed(*asked), "o_bias": False})
    place = tmp_path / "m.yml"
    init("--from", "llama", "--text", "ids.npy", "--attention", "mla", "-o", str(place))
    assert "refit: false}" in place.read_text()
    load_manifest(str(place))
    place.write_text(place.read_text().replace(", refit: false", ""))
    with pytest.raises(ManifestError, match="cannot be refitted: it has no o_bias"):
        plan_manifest(load_manifest(str(place), fetch=True))


def test_a_plan_says_what_no_transplant_starts(init: Callable[..., str], tmp_path: Path) -> None:
    place = tmp_path / "m.yml"
    init("--from", "llama", "--text", "ids.npy", "--attention", "mla", "-o", str(place))
    place.write_text(re.sub(r"type: mla\n(?: +\w+: .*\n)+", "type: alibi\n      n_heads: 4\n", place.read_text()))
    with pytest.raises(ManifestError, match=r"m.yml:\d+:\d+: .*there is no transplant 'gqa_to_alibi'"):
        plan_manifest(load_manifest(str(place), fetch=True))
