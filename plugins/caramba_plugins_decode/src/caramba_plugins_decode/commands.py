"""The commands ``generate``, ``chat``, ``chats`` and ``samples``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from caramba_plugins_decode.generating import Wanted
    from caramba_plugins_decode.source import TextModel

__all__ = ["chat", "chats", "generate", "samples"]

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="a run's folder (runs/NAME/GROUP/RUN), a manifest or preset (its teacher), or a checkpoint: FILE, FOLDER "
        "or hf://org/repo",
    ),
]
Temperature = Annotated[float | None, typer.Option(help="sample, logits divided by it; 0 is greedy")]
TopK = Annotated[int | None, typer.Option(help="sample from so many of the likeliest tokens")]
TopP = Annotated[float | None, typer.Option(help="sample from the likeliest tokens of this probability together")]
MinP = Annotated[float | None, typer.Option(help="sample from tokens of this share of the likeliest's probability")]
Penalty = Annotated[float | None, typer.Option(help="divide logits of tokens that came before")]
Seed = Annotated[int, typer.Option(help="seed of the draws; a file's line N has the seed plus N - 1", min=0)]
Stop = Annotated[list[str] | None, typer.Option(metavar="TEXT", help="text that ends an answer; several times")]
Draft = Annotated[
    str | None, typer.Option(metavar="SOURCE", help="smaller model that drafts tokens, which SOURCE checks in one pass")
]
DraftTokens = Annotated[int | None, typer.Option(help="tokens drafted at a time; adaptive if not given", min=1, max=64)]
Group = Annotated[str | None, typer.Option(help="the group of a manifest whose teacher is meant")]
Step = Annotated[int | None, typer.Option(help="a run's checkpoint of this step; its last if not given")]
TokenizerOf = Annotated[
    str | None, typer.Option("--tokenizer", metavar="SOURCE", help="checkpoint that carries the tokenizer")
]
Device = Annotated[Literal["auto", "cpu", "cuda", "mps"], typer.Option(help="auto takes CUDA, then MPS, then the CPU")]
DType = Annotated[
    Literal["float32", "bfloat16", "float16", "float64"] | None,
    typer.Option(help="type of weights and computation; the run's if not given, float32 of a checkpoint"),
]
CacheName = Annotated[
    str | None,
    typer.Option("--cache", help="how the cache stores keys and values: full, int8, int4; as the run measures"),
]
Context = Annotated[
    int | None, typer.Option(help="most tokens of prompt and answer; the model's own if not given", min=2)
]


def generate(
    source: Source,
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="[PROMPT]", help="the text to continue; - reads it from stdin, without its last line break"
        ),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.jsonl", help='prompts, one a line: "TEXT" or {"prompt": "TEXT", "id": ...}; - reads stdin'
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="most tokens to add", min=1)] = 128,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: Penalty = None,
    seed: Seed = 0,
    stop: Stop = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="go on behind the tokens that end a text or a turn")
    ] = False,
    add_bos: Annotated[
        bool | None, typer.Option("--add-bos/--no-bos", help="begin with BOS; as the tokenizer if left out")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="prompts of a file at a time; 8 if not given", min=1)] = None,
    draft: Draft = None,
    draft_tokens: DraftTokens = None,
    group: Group = None,
    step: Step = None,
    tokenizer: TokenizerOf = None,
    device: Device = "auto",
    dtype: DType = None,
    cache: CacheName = None,
    context: Context = None,
    json: Annotated[bool, typer.Option("--json", help="one JSON object instead of the text")] = False,
) -> None:
    """Continue prompts with a run's or a checkpoint's model.

    Greedily, unless a setting of sampling is given. The text goes to stdout as it comes; of a file, one JSON object a
    line, in the order of its prompts.
    """
    from caramba_core.errors import InputError
    from caramba_plugins_decode.generating import continue_file, continue_one, new_session
    from caramba_plugins_decode.prompts import read_prompts

    if (prompt is None) == (file is None):
        problem = "there is no prompt" if prompt is None else "there are a prompt and a file of prompts"
        raise InputError(problem, expected="a PROMPT, - for the text on stdin, or --file FILE.jsonl")
    if batch_size is not None and (file is None or (draft is not None and batch_size > 1)):
        reason = "a single prompt has none" if file is None else "a draft serves one text at a time"
        raise InputError(f"--batch-size {batch_size} cannot be: {reason}", hint="leave it out")
    settings = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "repetition_penalty": repetition_penalty}
    wanted = _wanted(
        {"temperature": temperature, **settings},
        seed=seed,
        max_new_tokens=max_new_tokens,
        stops=tuple(stop or ()),
        ignore_eos=ignore_eos,
        add_bos=add_bos,
    )
    how: dict[str, Any] = {"group": group, "step": step, "tokenizer": tokenizer, "context": context}
    opened = None if file in (None, "-") else _binary(Path(str(file)))
    text = sys.stdin.read().removesuffix("\n") if prompt == "-" else prompt
    model, drafting = _models(source, draft, draft_tokens, **how, device=device, dtype=dtype, cache=cache)
    if text is not None:
        ids = len(model.encode(text, add_bos))  # a prompt that cannot be is refused before weights are read
        texts = new_session(model, drafting, draft_tokens, ids + max_new_tokens + 64)
        continue_one(model, texts, text, wanted, as_json=json)
        return
    length = float("inf") if model.context is None else model.context
    one_by_one = None if drafting is None else new_session(model, drafting, draft_tokens, length)
    prompts = read_prompts(opened or sys.stdin.buffer)
    if continue_file(model, one_by_one, prompts, wanted, batch_size=batch_size or (1 if drafting else 8)):
        raise typer.Exit(2)


def chat(
    source: Source,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="what the system is told")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="most tokens of an answer", min=1)] = 1024,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: Penalty = None,
    seed: Annotated[int, typer.Option(help="seed of the draws", min=0)] = 0,
    stop: Stop = None,
    draft: Draft = None,
    draft_tokens: DraftTokens = None,
    group: Group = None,
    step: Step = None,
    tokenizer: TokenizerOf = None,
    device: Device = "auto",
    dtype: DType = None,
    cache: CacheName = None,
    context: Context = None,
) -> None:
    """Talk with a run's or a checkpoint's model.

    It takes the checkpoint's own chat template. /reset forgets the chat, /exit ends it; Ctrl-C stops an answer.
    """
    from caramba_plugins_standard.chat_template import chat_template_of

    from caramba_plugins_decode.chatting import Chat, converse
    from caramba_plugins_decode.generating import new_session

    settings = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "repetition_penalty": repetition_penalty}
    wanted = _wanted(
        {"temperature": temperature, **settings}, seed=seed, max_new_tokens=max_new_tokens, stops=tuple(stop or ())
    )
    how: dict[str, Any] = {"group": group, "step": step, "tokenizer": tokenizer, "context": context}
    model, drafting = _models(source, draft, draft_tokens, **how, device=device, dtype=dtype, cache=cache)
    template = chat_template_of(model.name, model.companions)
    if system is not None:  # a template that takes none is found before weights are read
        template.render([{"role": "system", "content": system}, {"role": "user", "content": "?"}])
    length = float("inf") if model.context is None else model.context
    converse(Chat(model, new_session(model, drafting, draft_tokens, length), template, wanted, system))


def chats(
    source: Source,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE.jsonl", help="where the chats go, once all are there")
    ],
    file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            help='what is answered, one a line: {"prompt": "TEXT"} or {"messages": [...]}; the model makes its own '
            "prompts without",
        ),
    ] = None,
    count: Annotated[int | None, typer.Option(help="chats; all of --file if not given", min=1)] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="what the system is told")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="most tokens of an answer", min=1)] = 256,
    max_prompt_tokens: Annotated[int, typer.Option(help="most tokens of a prompt that the model makes", min=1)] = 128,
    temperature: Annotated[float, typer.Option(help="divides the logits that are sampled from; 0 is greedy")] = 1.0,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: Penalty = None,
    seed: Annotated[int, typer.Option(help="seed of the draws", min=0)] = 0,
    batch_size: Annotated[int, typer.Option(help="chats at a time", min=1)] = 64,
    group: Group = None,
    step: Step = None,
    tokenizer: TokenizerOf = None,
    device: Device = "auto",
    dtype: DType = None,
    cache: CacheName = None,
    context: Context = None,
) -> None:
    """Write chats to train on: a model answers prompts, or such as it makes itself.

    Its chat template makes the prompts' text; what it makes itself is what it says in the user's place. The file is
    JSON lines with messages, as the dataset chats reads them.
    """
    from caramba_plugins_standard.chat_template import chat_template_of

    from caramba_core.errors import InputError
    from caramba_plugins_decode.chat_writing import ChatWriter, prompts_of, write_chats

    settings = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "repetition_penalty": repetition_penalty}
    wanted = _wanted({"temperature": temperature, **settings}, seed=seed, max_new_tokens=max_new_tokens, stops=())
    if file is None and count is None:
        raise InputError("there are no prompts", expected="--file FILE.jsonl, or --count N for prompts of its own")
    if file is None and wanted.sampling.greedy:
        raise InputError(
            "greedy prompts would all be the same", hint="give --temperature above 0, or --file FILE.jsonl"
        )
    given = None if file is None else prompts_of(file, system)
    how: dict[str, Any] = {"group": group, "step": step, "tokenizer": tokenizer, "context": context}
    model, _ = _models(source, **how, device=device, dtype=dtype, cache=cache)
    writer = ChatWriter(model, chat_template_of(model.name, model.companions), wanted, batch_size)
    write_chats(writer, output, given, count, system, max_prompt_tokens)


def samples(
    source: Source,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE.npy", help="where the tokens go, once all are there")
    ],
    count: Annotated[int, typer.Option(help="texts", min=1)] = 1280,
    length: Annotated[int, typer.Option(help="tokens of each", min=1)] = 1024,
    temperature: Annotated[float, typer.Option(help="divides the logits that are sampled from")] = 1.0,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: Penalty = None,
    seed: Annotated[int, typer.Option(help="seed of the draws", min=0)] = 0,
    batch_size: Annotated[int, typer.Option(help="texts at a time", min=1)] = 64,
    group: Group = None,
    step: Step = None,
    tokenizer: TokenizerOf = None,
    device: Device = "auto",
    dtype: DType = None,
    cache: CacheName = None,
    context: Context = None,
) -> None:
    """Write texts to train on that a model writes by itself, as an array of tokens.

    Each begins with a token drawn evenly from the vocabulary. So a teacher shows
    what it knows of kinds of text that no file at hand has. A mixture takes the
    array as a part beside others.
    """
    from caramba_core.errors import InputError
    from caramba_plugins_decode.samples import write_samples

    settings = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "repetition_penalty": repetition_penalty}
    wanted = _wanted({"temperature": temperature, **settings}, seed=seed, max_new_tokens=length, stops=())
    if wanted.sampling.greedy:
        raise InputError("greedy texts say little, and again and again", hint="give --temperature above 0")
    how: dict[str, Any] = {"group": group, "step": step, "tokenizer": tokenizer, "context": context}
    model, _ = _models(source, **how, device=device, dtype=dtype, cache=cache)
    write_samples(model, output, count, length, wanted, batch_size, asked={**how, "dtype": dtype})


def _wanted(sampling: dict[str, Any], **others: Any) -> Wanted:
    from caramba_plugins_standard.modes import Sampling

    from caramba_core.errors import InputError, InvalidValue
    from caramba_plugins_decode.generating import Wanted

    if "" in others["stops"]:
        raise InputError("--stop is empty", expected="a text that ends an answer")
    try:
        return Wanted(sampling=Sampling(**sampling), **others)
    except InvalidValue as error:
        option = str(error.field).replace("_", "-")
        raise InputError(f"--{option}: {error.message}", expected=error.expected, hint=error.hint) from None


def _models(
    source: str, draft: str | None = None, draft_tokens: int | None = None, **how: Any
) -> tuple[TextModel, TextModel | None]:
    """The model, and the one that drafts for it, opened so; their headers alone are read so far."""
    from caramba_core.errors import InputError
    from caramba_plugins_decode.source import Opening, open_text_model

    if draft is None and draft_tokens is not None:
        raise InputError("--draft-tokens is given, and nothing drafts", hint="name a smaller model: --draft SOURCE")
    model = open_text_model(source, Opening(**how))
    return model, None if draft is None else open_text_model(draft, Opening(**{**how, "group": None, "step": None}))


def _binary(path: Path) -> Any:
    from caramba_core.errors import InputError

    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
