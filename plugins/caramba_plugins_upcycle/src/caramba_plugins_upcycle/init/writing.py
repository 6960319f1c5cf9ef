"""The manifest that ``caramba init`` writes: text with comments, which is read and planned before it appears."""

from __future__ import annotations

import os
import re
import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
from caramba_document.suggestions import listing
from caramba_document.writing import dump
from caramba_terminal.numbers import format_average, format_bytes, format_count

from caramba_core.components import ITEM_BYTES
from caramba_core.errors import InputError
from caramba_core.graph import Graph, local_name
from caramba_core.manifest.load import load_manifest
from caramba_core.manifest.values import settings_of
from caramba_core.plan import Plan, plan_manifest
from caramba_core.plugins.registry import registry
from caramba_core.run.atomic import write_text
from caramba_core.teachers import reader
from caramba_plugins_upcycle.init.conversion import Conversion, propose
from caramba_plugins_upcycle.init.sizing import (
    Device,
    Sizes,
    Texts,
    context_for,
    device_here,
    open_texts,
    sizes_for,
)

__all__ = ["write_manifest"]

_SHARE: Final = re.compile(r"(0?\.\d+|1(?:\.0+)?)x?")
_WIDTH: Final = 80
_MEMORY: Final = 0.8
"""Share of a device's memory that a plan may take; the allocator's overhead and other programs have the rest."""

_FILL_IN: Final = "FILL IN"
_WANTED: Final = {
    "text": "a UTF-8 text, or an array of caramba data prepare",
    "tokens": "an array of token ids; the checkpoint carries no tokenizer",
}


def write_manifest(
    source: str | None,
    *,
    attention: str,
    cache: str,
    text: Path | None,
    heldout: Path | None,
    fields: Sequence[str],
    output: Path,
    force: bool,
) -> Iterator[str]:
    """Write the manifest; gives the lines that say what is in it and what comes next.

    Raises :class:`InputError` for anything that cannot be done as asked; nothing is written then.
    """
    share = _share(cache)
    _require_place(output, force=force)
    found = source or _at_hand(Path.cwd())
    pretrained = reader(found).open(found, Path())
    pretrained.check()
    device = device_here()
    texts = open_texts(text, heldout, pretrained.tokenizer(), pretrained.graph)
    context = context_for(texts, device)
    conversion = propose(pretrained.graph, attention, share=share, context=context, given=fields)
    draft = _Draft(
        source=found,
        attention=attention,
        share=share,
        graph=pretrained.graph,
        conversion=conversion,
        texts=texts,
        device=device,
        sizes=sizes_for(texts, device, context, bounded=conversion.bounded),
        output=output,
    )
    draft, plan = _fitting(draft)
    write_text(output, draft.text(plan))
    return draft.told(plan)


def _share(cache: str) -> float:
    match = _SHARE.fullmatch(cache)
    if match is None or float(match[1]) == 0:
        raise InputError(f"--cache {cache} is no share of a cache", expected="a share above 0, such as 0.5x")
    return float(match[1])


def _require_place(output: Path, *, force: bool) -> None:
    if output.suffix not in (".yml", ".yaml"):
        raise InputError(f"{output} is no name of a manifest with comments", expected="a name that ends in .yml")
    if output.exists() and not force:
        raise InputError(f"{output} is there already", hint="--force replaces it; -o writes another file")
    if not output.absolute().parent.is_dir():
        raise InputError(f"there is no folder {output.parent}", hint="make it, or write elsewhere with -o")


def _at_hand(folder: Path) -> str:
    """The one checkpoint that a folder is, or that lies in it."""
    loaders = [registry().load(entry) for entry in registry().entries("loader")]

    def accepted(place: Path) -> bool:
        return os.access(place, os.R_OK) and any(loader.accepts(place) for loader in loaders)

    if accepted(folder):
        return "."
    names = sorted(place.name for place in folder.iterdir() if not place.name.startswith("."))
    found = [name for name in names if accepted(folder / name)]
    if not found:
        raise InputError("there is no checkpoint in this folder", expected="--from FILE, FOLDER or hf://org/repo")
    if len(found) > 1:
        said = f"there are {len(found)} checkpoints in this folder"
        raise InputError(said, expected=f"--from with one of: {listing(found)}")
    return found[0]


def _fitting(draft: _Draft) -> tuple[_Draft, Plan]:
    """The draft with the largest sizes whose plan the device has memory for, and its plan; else the smallest ones."""
    for sizes in draft.sizes.smaller():
        draft = attrs.evolve(draft, sizes=sizes)
        plan = draft.plan()
        if not draft.device.memory or _needed(plan) <= _MEMORY * draft.device.memory:
            break
    return draft, plan


def _needed(plan: Plan) -> int:
    return max(run.memory.total for run in plan.runs)


# ------------------------------------------------------------------------------------------------ the text


@attrs.frozen(kw_only=True)
class _Draft:
    source: str
    attention: str
    share: float
    graph: Graph
    conversion: Conversion
    texts: Texts
    device: Device
    sizes: Sizes
    output: Path

    @property
    def called(self) -> str:
        """The checkpoint's own name."""
        return Path.cwd().name if self.source == "." else self.source.rstrip("/").rpartition("/")[2]

    @property
    def name(self) -> str:
        """The experiment's name: the checkpoint's."""
        stem = self.called.partition("@")[0].removesuffix(".gguf").removesuffix(".safetensors")
        return re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_")[:60] or "model"

    @property
    def group(self) -> str:
        """``dba_0.5x``."""
        return f"{self.attention.replace(':', '_')}_{self.share:g}x"

    def from_manifest(self, name: str) -> str:
        """A file's name, or an address, as the manifest writes it: relative to its own folder."""
        if "://" in name or Path(name).is_absolute() or name.startswith("~"):
            return name
        relative = Path(os.path.relpath(name, self.output.parent))
        far = relative.parts[:3] == ("..", "..", "..")
        return (Path(name).absolute() if far else relative).as_posix()

    def plan(self) -> Plan:
        """The plan of the manifest as it would be written: whatever is wrong with it is said now."""
        folder = self.output.parent
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".yml", prefix=".init-", dir=folder) as file:
            file.write(self.text(None))
            file.flush()
            (plan,) = plan_manifest(load_manifest(Path(file.name)))
        return plan

    def text(self, plan: Plan | None) -> str:
        """The manifest; its comments tell figures of the plan where there is one."""
        return "\n".join([*self._head(), *self._model(plan), *self._group(plan)]) + "\n"

    def _head(self) -> Iterator[str]:
        yield from _comment(
            f"{self.called} with {self.attention} in place of its attention, at {self.share:g} of its cache: started "
            "from its weights, trained briefly, measured before and after."
        )
        yield "#"
        yield f"#   caramba run {self.output.name}"
        yield f"#   caramba compile {self.output.name} --print-plan"
        yield f"#   caramba report runs/{self.name}/{self.group}"
        yield "version: 1"
        yield f"name: {_flow(self.name)}"
        yield f"requires: {_flow(self._requires())}"
        yield ""

    def _requires(self) -> list[str]:
        plugins = registry()
        wanted = (("attention", self.attention), ("origin", "teacher"))
        return list(dict.fromkeys(plugins.find((kind,), name).distribution for kind, name in wanted))

    def _model(self, plan: Plan | None) -> Iterator[str]:
        attentions = list(self.graph.attentions().values())
        yield "model:"
        yield f"  from: teacher    # {len(attentions)} attentions, width {self.graph.d_model}"
        yield "  replace:"
        if plan is not None and plan.teacher is not None and plan.teacher.model is not None:
            ours, context = plan.model.total.context_bytes, plan.model.context
            theirs, said = self._compared(plan.teacher.model.total.context_bytes)
            yield from _comment(
                f"cached per token of a text of {context:,}: {format_average(theirs / context)} bytes in the "
                f"teacher{said}, {format_average(ours / context)} here",
                indent=4,
            )
        written: dict[str, str] = {}
        for pattern, fields in self.conversion.replaced.items():
            known = written.get(repr(fields))
            if known is not None:
                yield f"    {_flow(pattern)}: *{known}"
                continue
            anchor = f" &{self._anchor(len(written))}" if self._repeats(fields) else ""
            written[repr(fields)] = self._anchor(len(written))
            yield f"    {_flow(pattern)}:{anchor}"
            yield from _fields(fields, self.conversion.target, 6)
        for reason, names in self.conversion.kept.items():
            count = "1 attention stays" if len(names) == 1 else f"{len(names)} attentions stay"
            yield from _comment(f"{count} the teacher's ({_names(names)}): {reason}", indent=4)
        yield ""

    def _repeats(self, fields: Mapping[str, Any]) -> bool:
        return sum(fields == other for other in self.conversion.replaced.values()) > 1

    @staticmethod
    def _anchor(number: int) -> str:
        return "a" if not number else f"a{number + 1}"

    def _group(self, plan: Plan | None) -> Iterator[str]:
        sizes = self.sizes
        yield "groups:"
        yield f"  - name: {_flow(self.group)}"
        teacher = {"source": self.from_manifest(self.source)}
        if sizes.teacher_dtype != "float32":
            teacher["dtype"] = sizes.teacher_dtype
        yield f"    teacher: {_flow(teacher)}"
        yield "    data:"
        if not self.texts.found:
            yield f"      # {_FILL_IN}: {_WANTED[self.texts.train['type']]}"
        for name, data in (("train", self.texts.train), ("heldout", self.texts.heldout)):
            yield f"      {name}: {_flow({**data, 'path': self.from_manifest(data['path'])})}"
        yield from _comment(f"perplexity of teacher, start and end: {sizes.windows} windows of held-out text", indent=4)
        yield f"    eval: {_flow({'windows': sizes.windows, 'context': sizes.context})}"
        yield "    runs:"
        yield from _comment(
            "Attentions start from the teacher's on calibration tokens; nothing trains. More tokens, and refine: true "
            "and refit_mlp: true, start nearer, in more time.",
            indent=6,
        )
        yield "      - id: convert"
        yield "        mode: convert"
        yield "        seed: 42"
        start = {"tokens": sizes.calibration, "max_context": sizes.context}
        if not self.conversion.refit:
            yield f"        # {self.attention} has no output bias, which a refit needs"
            start["refit"] = False
        yield f"        start: {_flow(start)}"
        yield from _comment(
            f"The model learns to predict what the teacher predicts: {format_count(sizes.trained)} tokens. Millions "
            "bring it close; raise steps.",
            indent=6,
        )
        yield "      - id: finetune"
        yield "        mode: train"
        yield "        seed: 42"
        yield f"        steps: {sizes.steps}"
        yield "        train:"
        yield "          strategy: upcycle.global"
        yield f"          trains: {_flow(list(sizes.trains))}"
        if sizes.dtype != "float32":
            yield f"          dtype: {sizes.dtype}"
        yield f"          batch_size: {sizes.batch_size}"
        if sizes.accumulate > 1:
            yield f"          accumulate: {sizes.accumulate}    # passes that make one step: what fits the memory here"
        yield f"          context: {sizes.train_context}"
        yield f"          lr: {sizes.lr!r}"

    def told(self, plan: Plan) -> Iterator[str]:
        """What the terminal says: what was found, what was chosen, and the next commands."""
        yield f"wrote {self.output}"
        facts = list(self._facts(plan))
        width = max(len(what) for what, _ in facts)
        for what, text in facts:
            lead = f"  {what:<{width}}  "
            yield from textwrap.wrap(
                text, 79, initial_indent=lead, subsequent_indent=" " * len(lead), break_on_hyphens=False
            )
        yield "next:"
        yield f"  caramba run {self.output}"
        yield f"  caramba report runs/{self.name}/{self.group}"

    def _compared(self, teacher: float) -> tuple[float, str]:
        """Bytes of the teacher's cache, and how they are counted where that needs saying.

        Beside a cache of few bits, whose size no computation changes, it is the teacher's in 16 bits.
        """
        if all(fields.get("cache") is None for fields in self.conversion.replaced.values()):
            return teacher, ""
        return teacher * ITEM_BYTES["bfloat16"] / ITEM_BYTES[self.sizes.teacher_dtype], " in 16 bits"

    def _facts(self, plan: Plan) -> Iterator[tuple[str, str]]:
        conversion, sizes = self.conversion, self.sizes
        if plan.teacher is not None and plan.teacher.model is not None:
            teacher, ours = plan.teacher.model.total, plan.model.total.context_bytes
            theirs, called = self._compared(teacher.context_bytes)
            yield "teacher", f"{self.source}: {format_count(teacher.parameters)} parameters"
            changed = len(self.graph.attentions()) - sum(map(len, conversion.kept.values()))
            yield (
                self.attention,
                f"{changed} attention{'s' * (changed != 1)}; cache at {plan.model.context:,} tokens "
                f"{format_bytes(theirs)}{called} -> {format_bytes(ours)} ({ours / theirs:.3g}x)",
            )
        distinct = {repr(fields): (pattern, fields) for pattern, fields in reversed(list(conversion.replaced.items()))}
        for pattern, fields in reversed(distinct.values()):
            said = ", ".join(f"{key} {_flow(value)}" for key, value in fields.items() if key != "type")
            yield "", said if len(distinct) == 1 else f"{pattern}{self._more(fields)}: {said}"
        for reason, names in conversion.kept.items():
            yield "unchanged", f"{_names(names)}: {reason}"
        if self.texts.found:
            learnt, measured = self.texts.tokens
            yield "data", f"{learnt:,} tokens to learn from, {measured:,} to measure on"
        else:
            line = next(n for n, line in enumerate(self.text(plan).splitlines(), 2) if _FILL_IN in line)
            yield "data", f"none yet: name a text in {self.output}, line {line}, or add --text FILE --force to init"
        needed, memory = _needed(plan), self.device.memory
        if memory:
            yield "memory", f"about {format_bytes(needed)} of {format_bytes(memory)} ({self.device.called})"
        if memory and needed > _MEMORY * memory:
            yield "", "more than this machine should give: take a larger one, or a smaller checkpoint"
        yield "runs", f"convert on {sizes.calibration:,} tokens, finetune on {sizes.trained:,}, both measured"

    def _more(self, fields: Mapping[str, Any]) -> str:
        """How many patterns besides the first have these fields."""
        count = sum(fields == other for other in self.conversion.replaced.values()) - 1
        return f" and {count} more" if count else ""


def _flow(value: Any) -> str:
    """A value on one line, as a manifest writes it."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_flow(item)}' for key, item in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_flow, value))}]"
    return dump({"x": value}).partition(" ")[2].rstrip()


def _fields(fields: Mapping[str, Any], target: Any, indent: int) -> Iterator[str]:
    """Lines ``key: value``, each with what it means: beside it, or above where it is long."""
    meanings = {name: attribute.metadata.get("help", "") for name, (attribute, _) in settings_of(target).items()}
    lines = {name: f"{' ' * indent}{name}: {_flow(value)}" for name, value in fields.items()}
    column = max(map(len, lines.values())) + 2
    for name, line in lines.items():
        meaning = meanings.get(name, "")
        if not meaning:
            yield line
        elif column + 2 + len(meaning) <= _WIDTH:
            yield f"{line:<{column}}# {meaning}"
        else:
            yield from _comment(meaning, indent=indent)
            yield line


def _comment(text: str, *, indent: int = 0) -> Iterator[str]:
    """Lines of a comment that fit the terminal."""
    lead = f"{' ' * indent}# "
    yield from textwrap.wrap(text, _WIDTH, initial_indent=lead, subsequent_indent=lead, break_on_hyphens=False)


def _names(names: Sequence[str]) -> str:
    shown = [local_name(name) for name in names]
    return ", ".join(shown) if len(shown) < 4 else f"{shown[0]}, {shown[1]} ... {shown[-1]}"
