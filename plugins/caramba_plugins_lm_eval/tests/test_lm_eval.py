"""Tasks of lm-eval over caramba's model, beside lm-eval's own model of transformers on the same folder."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from caramba_plugins_eval.opening import Asked, open_subject
from caramba_terminal.reporter import Reporter
from rich.console import Console
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from caramba_core.cli import main

pytest.importorskip("lm_eval")

TEXT = "The sea was calm; the men rowed on, and nobody said a word. At noon, the wind rose from the north.\n"
QUESTIONS = (
    ("The sea was", (" calm", " rowed", " the north wind", " word"), 0),
    ("the men rowed", (" noon", " on"), 1),
    ("At noon, the ", ("wind rose", "sea", "a"), 0),
)
EXACT = {"logits_cache": False}
"""lm-eval's cache of logits mixes up continuations of unequal lengths (findings/lm_eval_shares_logits_wrongly.sh)."""

TASKS = {
    "book": """\
task: book
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/book.jsonl}}, cache_dir: {folder}/cache}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{page}}}}"
metric_list: [{{metric: word_perplexity}}, {{metric: byte_perplexity}}, {{metric: bits_per_byte}}]
""",
    "cloze": """\
task: cloze
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/cloze.jsonl}}, cache_dir: {folder}/cache}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
target_delimiter: ""
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
""",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a tokenizer, and two tasks over files."""
    transformers = importlib.import_module("transformers")
    place = tmp_path_factory.mktemp("harness")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([TEXT] * 3, trainer)
    backend.add_special_tokens([AddedToken("<|end|>", special=True, normalized=False)])
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=backend.get_vocab_size(),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=backend.token_to_id("<|end|>"),
    )
    transformers.LlamaForCausalLM(config).save_pretrained(place / "model")
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>").save_pretrained(place / "model")
    (place / "text.txt").write_text(TEXT * 4)
    (place / "book.jsonl").write_text(json.dumps({"page": TEXT * 4}) + "\n")
    rows = [{"question": asked, "choices": list(choices), "label": label} for asked, choices, label in QUESTIONS]
    (place / "cloze.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "tasks").mkdir()
    for name, text in TASKS.items():
        (place / "tasks" / f"{name}.yaml").write_text(text.format(folder=place))
    return place


@pytest.fixture(scope="module")
def both(folder: Path) -> tuple[Any, Any]:
    """The model in caramba's hands, and in lm-eval's own."""
    asked = Asked(device="cpu", batch_size=3)
    subject = open_subject(str(folder / "model"), asked, Reporter(Console(quiet=True))).subject
    ours = importlib.import_module("caramba_plugins_lm_eval.model").CarambaLM(subject)
    harness = importlib.import_module("lm_eval.models.huggingface")
    theirs = harness.HFLM(pretrained=str(folder / "model"), device="cpu", dtype="float32", batch_size=3, **EXACT)
    return ours, theirs


def requests(*arguments: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=one) for one in arguments]


def test_likelihoods_of_continuations(both: tuple[Any, Any]) -> None:
    """Of unequal lengths, without a context, longer than the model's context, and with a space at the cut."""
    pairs = [(asked, choice) for asked, choices, _ in QUESTIONS for choice in choices]
    pairs += [("", "The sea"), (TEXT * 3, " calm"), ("At noon, ", "the wind")]
    ours, theirs = (model.loglikelihood(requests(*pairs)) for model in both)
    for found, expected, pair in zip(ours, theirs, pairs, strict=True):
        assert found[0] == pytest.approx(expected[0], abs=2e-4), pair
        assert found[1] == expected[1], pair
    greedy = both[1].generate_until(requests((TEXT, {"until": [], "max_gen_toks": 3})))
    ours, theirs = (model.loglikelihood(requests((TEXT, greedy[0]))) for model in both)
    assert ours[0][1] == theirs[0][1]


def test_likelihoods_of_whole_texts(both: tuple[Any, Any]) -> None:
    texts = [(TEXT * 4,), ("The sea",), (TEXT * 2,)]
    ours, theirs = (model.loglikelihood_rolling(requests(*texts)) for model in both)
    assert ours == pytest.approx(theirs, abs=2e-3)


def test_texts(both: tuple[Any, Any]) -> None:
    """Prompts of unequal lengths, with stop texts and without, one longer than fits."""
    asked = [(prompt, {"until": ["e"], "max_gen_toks": 8}) for prompt in ("The sea was", "At", TEXT * 4)]
    asked += [("the men rowed", {"until": [], "max_new_tokens": 5}), ("the men", {"until": [" "], "max_gen_toks": 4})]
    ours, theirs = (model.generate_until(requests(*asked)) for model in both)
    assert ours == theirs


Ran = tuple[int, str, str]


@pytest.fixture
def caramba(folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """``caramba eval`` on the model, with the folder of tasks."""
    monkeypatch.setenv("CARAMBA_LM_EVAL_TASKS", str(folder / "tasks"))
    monkeypatch.chdir(folder)

    def run(*arguments: object) -> Ran:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["eval", "model", "--device", "cpu", *map(str, arguments)])
        said = capfd.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


def test_rolling_is_the_metric_of_that_name(folder: Path, caramba: Callable[..., Ran], both: tuple[Any, Any]) -> None:
    """And a multiple-choice task is scored as lm-eval scores it with its own model."""
    code, out, err = caramba(
        *("--metric", "lm_eval", "--set", "lm_eval={tasks: [book, cloze], context: 64}", "--metric", "rolling"),
        *("--set", "rolling.context=64", "--data", "text.txt", "--context", 32, "--json"),
    )
    assert code == 0, err
    found = {name: figure["value"] for name, figure in json.loads(out)["metrics"].items()}
    for ours, theirs in (("word", "word_perplexity"), ("byte", "byte_perplexity"), ("bits_per_byte", "bits_per_byte")):
        assert found[f"rolling.{ours}"] == pytest.approx(found[f"lm_eval.book.{theirs}"], rel=1e-5)
    right = 0
    for asked, choices, label in QUESTIONS:
        scores = [score for score, _ in both[1].loglikelihood(requests(*((asked, choice) for choice in choices)))]
        right += scores.index(max(scores)) == label
    assert found["lm_eval.cloze.acc"] == pytest.approx(right / len(QUESTIONS))
    assert json.loads(out)["metrics"]["lm_eval.cloze.acc"]["interval_95"] is not None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("{tasks: []}", "tasks: the list is empty"),
        ("{tasks: [book], context: 100}", "lm_eval: a context of 100 is beyond the 64 that model is made for"),
    ],
)
def test_settings_that_cannot_be(caramba: Callable[..., Ran], settings: str, said: str) -> None:
    code, _, err = caramba("--metric", "lm_eval", "--set", f"lm_eval={settings}")
    assert code == 2
    assert said in err


def test_a_task_that_nobody_knows(caramba: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is a file one, by its path: it could run code."""
    tasks = importlib.import_module("lm_eval.tasks")
    manager = tasks.TaskManager
    monkeypatch.setattr(tasks, "TaskManager", lambda **options: manager(**{**options, "include_defaults": False}))
    for name in ("clozy", "tasks/cloze.yaml"):
        code, _, err = caramba("--metric", "lm_eval", "--set", f"lm_eval.tasks=[{name}]")
        assert code == 2
        assert f"lm_eval: lm-eval knows no task '{name}'" in err


def test_what_is_missing(caramba: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARAMBA_LM_EVAL_TASKS", "nowhere")
    code, _, err = caramba("--metric", "lm_eval", "--set", "lm_eval.tasks=[cloze]")
    assert code == 2
    assert "CARAMBA_LM_EVAL_TASKS names nowhere, which is no folder" in err
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.tasks", None)
    code, _, err = caramba("--metric", "lm_eval", "--set", "lm_eval.tasks=[cloze]")
    assert code == 2
    assert "lm-eval cannot be imported" in err
    assert "pip install 'caramba-plugins-lm-eval[lm-eval]'" in err
