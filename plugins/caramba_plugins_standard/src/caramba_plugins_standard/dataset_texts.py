"""Texts of a dataset in the layout of the Hugging Face hub, streamed by the library ``datasets``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import attrs

from caramba_core.errors import InputError
from caramba_plugins_standard.libraries import library
from caramba_plugins_standard.texts import require_text

__all__ = ["DatasetTexts"]

_ROWS: Final = 256


@attrs.frozen(kw_only=True)
class DatasetTexts:
    """The texts under ``column`` of a split; ``location`` is a folder, or a name on the hub at the commit ``revision``.

    Nothing is kept on the disk.  ``name`` is what messages call it.
    """

    name: str
    location: str
    column: str
    split: str
    subset: str | None = None
    revision: str | None = None

    @property
    def facts(self) -> list[Any]:
        """Its address and commit; of a folder, all files with their sizes and times of change."""
        files = sorted(path for path in Path(self.location).rglob("*") if path.is_file()) if not self.revision else []
        seen = [(str(path.resolve()), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in files]
        return [self.name, self.revision, self.subset, self.split, self.column, seen]

    @property
    def size(self) -> None:
        """Not known beforehand."""

    def read(self, progress: Callable[[int], None] = lambda size: None) -> Iterator[Iterator[str]]:
        """Each text, as the library gives the rows."""
        done = 0
        for table in self._stream().iter(batch_size=_ROWS):
            for row, text in enumerate(table.column(self.column).to_pylist(), done + 1):
                yield iter([require_text(text, f"{self.name}: row {row}: {self.column!r}")])
            done += len(table)
            progress(table.nbytes)

    def _stream(self) -> Any:
        """An iterable dataset of tables with the one column."""
        datasets = library("datasets", f"{self.name} is read", extra="caramba-plugins-standard[datasets]")
        datasets.disable_progress_bars()
        datasets.logging.set_verbosity_error()
        chosen = {"name": self.subset, "split": self.split, "revision": self.revision}
        try:
            stream = datasets.load_dataset(self.location, **chosen, streaming=True)
        except (ValueError, datasets.exceptions.DatasetsError, FileNotFoundError) as error:
            first = str(error).partition("\n")[0]
            raise InputError(f"{self.name}: {first}", hint="--subset and --split choose what is read of it") from error
        if stream.info.builder_name == "text":
            raise InputError(
                f"{self.name} holds plain texts, of which the library gives lines",
                hint=f"name the files, each of which is one text: {self.location}/*.txt",
            )
        columns = stream.column_names or list(next(iter(stream), {}))
        if self.column not in columns:
            keys = ", ".join(map(repr, columns)) or "none"
            raise InputError(
                f"{self.name}: there is no {self.column!r}; its columns: {keys}", hint="--column names the text's"
            )
        return stream.select_columns([self.column]).with_format("arrow")
