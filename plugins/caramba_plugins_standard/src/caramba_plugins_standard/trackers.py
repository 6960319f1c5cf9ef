"""Where the numbers of a run go beside its own folder (configs; light)."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from caramba_core.components import Component, component, option
from caramba_core.errors import PluginError

if TYPE_CHECKING:
    from caramba_core.run.context import RunContext

__all__ = ["TensorBoard", "Tracker", "TrackerRunner", "Trackio", "WeightsAndBiases"]


class TrackerRunner(Protocol):
    """What a tracker's ``builds`` makes, as ``cls(config, context)``, once a run begins or goes on."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take numbers of a step; there may be several calls for one."""

    def flush(self) -> None:
        """Keep what was taken: a checkpoint was saved."""

    def end(self, summary: Mapping[str, Any] | None) -> None:
        """Close; ``summary`` is the run's ``summary.json``, ``None`` where it did not come to its end."""


@component
class Tracker(Component):
    """Something that shows numbers of runs; ``builds`` is a class ``(config, context) -> TrackerRunner``."""

    kind: ClassVar[str] = "tracker"
    builds: ClassVar[str] = ""
    library: ClassVar[str] = ""
    """The module that it needs, which is not there without the extra of the same name."""

    def require(self) -> None:
        """Raise :class:`PluginError` where its library is not installed; before the run starts."""
        if self.library and find_spec(self.library) is None:
            raise PluginError(
                f"the tracker {type(self).__name__} needs the library {self.library}, which is not installed",
                hint=f"pip install 'caramba-plugins-standard[{self.library}]', or leave it out of train.trackers",
            )

    def start(self, context: RunContext) -> TrackerRunner:
        """The tracker of one run."""
        from caramba_core.nn.build import load_object

        runner: TrackerRunner = load_object(self.builds)(self, context)
        return runner


@component
class TensorBoard(Tracker):
    """Event files that ``tensorboard --logdir runs`` shows; steps that a run does again replace the earlier ones."""

    builds: ClassVar[str] = "caramba_plugins_standard.tracker_runners:TensorBoardRunner"
    library: ClassVar[str] = "tensorboard"

    folder: str | None = option(
        default=None, help="where event files go, a folder a run; the folder tensorboard of each run if not given"
    )


@component
class WeightsAndBiases(Tracker):
    """Weights & Biases; offline, ``wandb sync`` sends later what stands in the run's folder."""

    builds: ClassVar[str] = "caramba_plugins_standard.tracker_runners:WeightsAndBiasesRunner"
    library: ClassVar[str] = "wandb"

    project: str | None = option(default=None, help="the project; the manifest's name if not given")
    entity: str | None = option(default=None, help="the user or team; the default one of the account if not given")
    mode: Literal["online", "offline"] = option(default="online", help="whether anything is sent")


@component
class Trackio(Tracker):
    """Trackio, in its database on this machine (``trackio show``) or in a Space of the Hugging Face hub."""

    builds: ClassVar[str] = "caramba_plugins_standard.tracker_runners:TrackioRunner"
    library: ClassVar[str] = "trackio"

    project: str | None = option(default=None, help="the project; the manifest's name if not given")
    space: str | None = option(default=None, help="a Space that takes the numbers, OWNER/NAME; none if not given")
