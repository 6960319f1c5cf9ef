"""What a report measures itself where it is asked to: decoding against context, and what attentions look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
from caramba_plugins_standard.opening import open_run

from caramba_core.run.directory import RunDirectory
from caramba_plugins_report.attending import attention_maps
from caramba_plugins_report.measured_figures import of_attention, of_decoding
from caramba_plugins_report.plotting import Drawing
from caramba_plugins_report.speed import DecodingSpeed, decoding_speeds
from caramba_plugins_report.whole import Whole

__all__ = ["Asked", "Measured", "measured"]


@attrs.frozen(kw_only=True)
class Asked:
    """What to measure: decoding behind ``contexts`` tokens, maps of ``attentions``; ``tell`` is told what goes on."""

    contexts: Sequence[int] = ()
    attentions: Sequence[str] = ()
    device: str = "auto"
    tell: Callable[[str], None] = lambda text: None


@attrs.frozen(kw_only=True)
class Measured:
    """What was measured of a group, its figures, and what could not be."""

    speeds: list[DecodingSpeed] = attrs.Factory(list)
    decoding: list[Drawing] = attrs.Factory(list)
    attention: list[Drawing] = attrs.Factory(list)
    notes: list[str] = attrs.Factory(list)

    @property
    def drawings(self) -> list[Drawing]:
        """All figures."""
        return [*self.decoding, *self.attention]


def measured(runs: Sequence[Whole], asked: Asked) -> Measured:
    """Measure the last finished run of a group that has a checkpoint, and its teacher.

    All runs of a group share one model, and the last one its best weights.
    """
    if not asked.contexts and not asked.attentions:
        return Measured()
    able = [run for run in runs if run.info.status == "done" and RunDirectory(run.info.path).checkpoints()]
    if not able:
        return Measured(notes=["nothing was measured: no finished run has a checkpoint"])
    info, found = able[-1].info, Measured()
    opened = open_run(info.path, None)
    if asked.contexts:
        asked.tell(f"{info.group}: decoding behind {', '.join(f'{context:,}' for context in asked.contexts)} tokens")
        found.speeds.extend(decoding_speeds(opened, asked.contexts, asked.device))
        found.decoding.extend(of_decoding(found.speeds, info.group))
    for wanted in asked.attentions:
        asked.tell(f"{info.group}: what the attention {wanted} looks at")
        maps = attention_maps(opened, wanted, asked.device)
        found.attention.extend(of_attention(maps, info.group))
        found.notes.extend(maps.missing)
    return found
