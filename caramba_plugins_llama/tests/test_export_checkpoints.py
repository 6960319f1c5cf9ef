"""Checkpoints written as folders as they are; what cards say; tokenizers and types that do not fit."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from caramba_plugins_llama.export import export
from caramba_plugins_standard.loading import find_loader
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file

from caramba_core.cli import main
from caramba_core.errors import InputError
from caramba_core.run.checkpoint import save_checkpoint
from caramba_core.run.directory import RunDirectory

from .conftest import quiet, random_tokens, write_oracle
from .local_hub import COMMIT, LocalHub
from .runs import decoder, make_run
from .test_gguf import Q4_1_SIZES as GGUF_SIZES
from .test_gguf import write_gguf
from .test_parity import CASES
from .test_tokenizers import metadata, trained

GQA: dict[str, Any] = {"type": "gqa", "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "rope": {"theta": 500.0}}
TOKENS = random_tokens(40)


def theirs(folder: Path, **options: Any) -> Any:
    transformers = importlib.import_module("transformers")
    with quiet():
        return transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def front_matter(folder: Path) -> dict[str, Any]:
    _, metadata, _ = (folder / "README.md").read_text().split("---\n", 2)
    found: dict[str, Any] = YAML(typ="safe", pure=True).load(metadata)
    return found


def card(folder: Path) -> str:
    return (folder / "README.md").read_text()


@pytest.mark.parametrize("name", CASES)
def test_folders_come_out_as_transformers_reads_them(tmp_path: Path, name: str) -> None:
    """Every family under its own name: the same logits, the same tensors."""
    model_type, config = CASES[name]
    original = write_oracle(tmp_path / "hf", model_type, **config)
    done = export(tmp_path / "hf", tmp_path / "out")
    assert (done.exporter, done.dtype) == ("standard", "float32")
    written = theirs(tmp_path / "out", attn_implementation="eager")
    assert written.config.model_type == model_type
    with torch.no_grad():
        assert torch.equal(written(TOKENS).logits, original(TOKENS).logits)
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("hf", "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_gguf_comes_out_as_transformers_reads_it(tmp_path: Path, architecture: str, kind: str) -> None:
    write_oracle(tmp_path / "hf", architecture, **GGUF_SIZES, vocab_size=332)
    tokenizer = metadata(trained("smollm"), "smollm")
    write_gguf(tmp_path / "m.gguf", tmp_path / "hf", architecture, gguf.GGMLQuantizationType[kind], extra=tokenizer)
    assert export(tmp_path / "m.gguf", tmp_path / "out").dtype == "float32"
    expected, found = theirs(tmp_path, gguf_file="m.gguf", dtype=torch.float32), theirs(tmp_path / "out")
    assert found.config.model_type == architecture
    tokens = random_tokens(40, vocabulary=332)
    with torch.no_grad():
        torch.testing.assert_close(found(tokens).logits, expected(tokens).logits, rtol=0, atol=1e-5)
    assert (tmp_path / "out" / "tokenizer.json").exists()


def test_a_folder_that_caramba_wrote(tmp_path: Path) -> None:
    make_run(tmp_path / "run", decoder(GQA))
    export(tmp_path / "run", tmp_path / "first")
    done = export(tmp_path / "first", tmp_path / "second", dtype="bfloat16")
    assert done.dtype == "bfloat16"
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert all(torch.equal(values.bfloat16(), second[key]) for key, values in first.items())


def test_the_command_takes_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_oracle(tmp_path / "hf", "qwen2")
    with pytest.raises(SystemExit) as ended:
        main(["export", str(tmp_path / "hf"), "-o", str(tmp_path / "out")])
    assert ended.value.code == 0
    assert "parameters in float32, by the exporter standard" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "nowhere does not exist(.|\n)*runs/NAME/GROUP/RUN, or a checkpoint"),
        ("text", "text is not a run's folder, and not a checkpoint that can be read:(.|\n)*text is not a checkpoint"),
        ("empty", "empty is not a run's folder, and not a checkpoint that can be read:(.|\n)*the folder is empty"),
        ("other://a/b", "no installed plugin fetches from other://"),
    ],
)
def test_what_is_neither_a_run_nor_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("text")
    Path("empty").mkdir()
    with pytest.raises(SystemExit) as ended:
        main(["export", name, "-o", "out"])
    assert ended.value.code not in (0, 1)
    assert re.search(message, capsys.readouterr().err)
    assert not Path("out").exists()


def test_a_checkpoint_that_does_not_fit_itself(tmp_path: Path) -> None:
    write_oracle(tmp_path / "hf", "llama")
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    del tensors["model.norm.weight"]
    tensors["lm_head.weight"][0, 0] = torch.nan
    save_file(tensors, tmp_path / "hf" / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.norm\.weight \[48\] is in the model, and the checkpoint does not"):
        export(tmp_path / "hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------ types


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_values_that_a_type_cannot_hold(tmp_path: Path, dtype: str) -> None:
    """Named with their largest value; up to what still rounds to a number they are written."""
    write_oracle(tmp_path / "hf", "llama")
    largest = torch.finfo(getattr(torch, dtype)).max
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    tensors["model.norm.weight"][3] = -largest
    save_file(tensors, tmp_path / "hf" / "model.safetensors")
    assert export(tmp_path / "hf", tmp_path / "fits", dtype=dtype).dtype == dtype
    tensors["model.norm.weight"][3] = -largest * 1.0025
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = largest * 1.003
    save_file(tensors, tmp_path / "hf" / "model.safetensors")
    with pytest.raises(InputError) as refused:
        export(tmp_path / "hf", tmp_path / "out", dtype=dtype)
    message = str(refused.value)
    assert f"2 of 30 tensors do not fit in {dtype}, which ends at {largest:,.6g}" in message
    assert f"norm.weight: its largest value is {largest * 1.0025:,.6g}" in message
    assert f"blocks.1.mlp.up_proj: its largest value is {largest * 1.003:,.6g}" in message
    assert ("--dtype bfloat16 or float32" in message) is (dtype == "float16")
    assert not (tmp_path / "out").exists()


def test_runs_whose_values_are_no_numbers(tmp_path: Path) -> None:
    model = make_run(tmp_path / "run", decoder(GQA))
    model.state_dict()["norm.weight"][2] = torch.inf
    save_checkpoint(RunDirectory(tmp_path / "run").checkpoint(3), model=model, optimizer=None, state={"step": 3})
    with pytest.raises(InputError, match=r"1 of \d+ tensors hold NaN or infinity: norm\.weight"):
        export(tmp_path / "run", tmp_path / "out")


# ------------------------------------------------------------------------------------------------ tokenizers


def write_tokenizer(folder: Path) -> Any:
    tokenizer = trained("smollm")
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


@pytest.mark.parametrize("large", ["vocabulary", "added token", "end of sequence"])
@pytest.mark.parametrize("source", ["run", "checkpoint"])
def test_tokenizers_that_do_not_fit(tmp_path: Path, large: str, source: str) -> None:
    """More ids than the model has rows of embeddings, wherever they stand."""
    write_oracle(tmp_path / "hf", "llama", vocab_size=61 if source == "checkpoint" else 97)
    make_run(tmp_path / "run", decoder(GQA), teacher=str(tmp_path / "hf"))
    config = {"eos_token_id": 331} if large == "end of sequence" else {}
    write_oracle(tmp_path / "other", "llama", vocab_size=400, **config)
    if large == "vocabulary":
        write_tokenizer(tmp_path / "other")
    if large == "added token":
        settings = {"added_tokens_decoder": {"331": {"content": "<x>"}}}
        (tmp_path / "other" / "tokenizer_config.json").write_text(json.dumps(settings))
    path = tmp_path / ("run" if source == "run" else "hf")
    with pytest.raises(InputError, match=r"other does not fit the model: it has 332 ids, and the model 61 rows"):
        export(path, tmp_path / "out", origin=str(tmp_path / "other"))
    assert not (tmp_path / "out").exists()
    if source == "run" and large == "vocabulary":  # the teacher's own likewise
        make_run(tmp_path / "small", decoder(GQA), teacher=str(tmp_path / "other"))
        with pytest.raises(InputError, match="does not fit the model"):
            export(tmp_path / "small", tmp_path / "out")


def test_tokenizers_that_fit(tmp_path: Path) -> None:
    """Fewer ids than rows are no fault, and one that a checkpoint has itself stays as it is."""
    write_oracle(tmp_path / "padded", "llama", vocab_size=400)
    write_tokenizer(tmp_path / "padded")
    assert "tokenizer.json" in export(tmp_path / "padded", tmp_path / "more").files
    write_oracle(tmp_path / "short", "llama", vocab_size=300)
    write_tokenizer(tmp_path / "short")
    assert "tokenizer.json" in export(tmp_path / "short", tmp_path / "less").files


def test_tokenizers_other_than_the_runs(tmp_path: Path) -> None:
    """Where the run knows which tokenizer made its tokens, another one is refused though its ids fit."""
    write_oracle(tmp_path / "hf", "llama", vocab_size=400)
    write_tokenizer(tmp_path / "hf")
    tokenizer = find_loader(tmp_path / "hf").tokenizer()
    assert tokenizer is not None
    model = make_run(tmp_path / "run", decoder(GQA, vocabulary=400))
    state = {"step": 3, "tokenizer": tokenizer.identity}
    save_checkpoint(RunDirectory(tmp_path / "run").checkpoint(3), model=model, optimizer=None, state=state)
    assert "tokenizer.json" in export(tmp_path / "run", tmp_path / "same", origin=str(tmp_path / "hf")).files
    trained("gpt-2").save(str(tmp_path / "hf" / "tokenizer.json"))
    with pytest.raises(
        InputError, match=rf"is not the one that the run's tokens were made with.*{state['tokenizer'][:12]}"
    ):
        export(tmp_path / "run", tmp_path / "out", origin=str(tmp_path / "hf"))


# ------------------------------------------------------------------------------------------------ cards


CARD = "---\nlicense: {}\nlicense_name: {}\n---\n# A model\n"


@pytest.mark.parametrize(
    ("text", "license_", "line"),
    [
        ("---\nlicense: apache-2.0\n---\n", "apache-2.0", "Licence: apache-2.0"),
        ("---\nlicense: [mit, bsd]\n---\n", "mit, bsd", "Licence: mit, bsd"),
        ("---\nlicense: other\nlicense_name: own\nlicense_link: L\n---\n", "other", "Licence: own (L)"),
        ("---\nlicense: 3\n---\n", "unknown", "Licence: unknown"),
        ("---\nlicense: [\n---\n", "unknown", "Licence: unknown"),
        ("---\nlicense: 'a: b\n  c\"'\n---\n", 'a: b c"', 'Licence: a: b c"'),
        ("# no metadata\nlicense: mit\n", "unknown", "Licence: unknown"),
        (None, "unknown", "Licence: unknown"),
    ],
)
def test_the_licence_of_a_folder(tmp_path: Path, text: str | None, license_: str, line: str) -> None:
    write_oracle(tmp_path / "hf", "llama")
    if text is not None:
        (tmp_path / "hf" / "README.md").write_text(text)
    export(tmp_path / "hf", tmp_path / "out")
    assert front_matter(tmp_path / "out")["license"] == license_
    assert f"- {line}\n" in card(tmp_path / "out")
    assert "- Checkpoint: `hf`, its weights as they are\n" in card(tmp_path / "out")
    assert str(tmp_path) not in card(tmp_path / "out")


def test_the_licence_of_gguf(tmp_path: Path) -> None:
    write_oracle(tmp_path / "hf", "llama", **GGUF_SIZES)
    (tmp_path / "README.md").write_text(CARD.format("mit", "of something else"))
    for name, extra in (("a", {"general.license": "apache-2.0"}), ("b", {})):
        write_gguf(tmp_path / f"{name}.gguf", tmp_path / "hf", "llama", extra=extra)
        export(tmp_path / f"{name}.gguf", tmp_path / name)
    assert front_matter(tmp_path / "a")["license"] == "apache-2.0"
    assert front_matter(tmp_path / "b")["license"] == "unknown"


def test_a_card_of_the_hub(tmp_path: Path, hub: LocalHub) -> None:
    """Commit, name and licence of a teacher from the hub; without a card, or the hub, the licence is unknown."""
    write_oracle(tmp_path / "hf", "llama", vocab_size=61)
    files = hub.add("org/model", tmp_path / "hf")
    files["README.md"] = CARD.format("other", "llama3.2").encode()
    export("hf://org/model", tmp_path / "out")
    assert f"- Checkpoint: `org/model` at `{COMMIT}`, its weights as they are\n" in card(tmp_path / "out")
    found = front_matter(tmp_path / "out")
    assert (found["license"], found["license_name"], found["base_model"]) == ("other", "llama3.2", "org/model")

    make_run(tmp_path / "run", decoder(GQA), teacher=f"hf://org/model@{COMMIT}")
    export(tmp_path / "run", tmp_path / "student")
    assert f"- Teacher: `org/model` at `{COMMIT}`\n- Licence: llama3.2, the teacher's\n" in card(tmp_path / "student")

    make_run(tmp_path / "other", decoder(GQA), teacher="hf://org/gone")
    export(tmp_path / "other", tmp_path / "orphan", origin=str(tmp_path / "hf"))
    assert "- Teacher: `org/gone`\n- Licence: unknown\n" in card(tmp_path / "orphan")

    del hub.repositories["org/model"]["README.md"]
    hub.add("org/plain", tmp_path / "hf")
    export("hf://org/plain", tmp_path / "plain")
    assert "- Licence: unknown\n" in card(tmp_path / "plain")


def test_a_card_names_data_and_figures(tmp_path: Path) -> None:
    make_run(tmp_path / "run", decoder(GQA))
    export(tmp_path / "run", tmp_path / "out")
    text = card(tmp_path / "out")
    assert "- Teacher: none; the weights started at random values\n" in text
    assert "- Measured on: `heldout.npy`\n" in text
    assert "1,234 tokens scored, at a context of 1,024" in text
    assert "| perplexity on held-out text | 12.500 ± 0.500 | 20.000 ± 0.750 | 13.750 ± 0.250 |" in text
    assert "with caramba-core 0.1.0 (commit 0123456789ab of caramba)" in text
    assert "trust_remote_code" not in text


@pytest.mark.parametrize("source", ["folder", "gguf"])
def test_the_snippet_works_as_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    write_oracle(tmp_path / "hf", "llama", vocab_size=400, bos_token_id=1, eos_token_id=2, pad_token_id=2)
    tokenizer = write_tokenizer(tmp_path / "hf")
    path = tmp_path / "hf"
    if source == "gguf":
        path = tmp_path / "m.gguf"
        write_gguf(path, tmp_path / "hf", "llama", extra=metadata(tokenizer, "smollm"))
    export(path, tmp_path / "out")
    code = re.search(r"```python\n(.*?)```", card(tmp_path / "out"), re.DOTALL)
    assert code is not None
    monkeypatch.chdir(tmp_path)
    with quiet():
        exec(code[1], {})
