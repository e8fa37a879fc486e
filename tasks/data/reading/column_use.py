"""Which columns of a source are used and which are ignored, without names that may quote a person's text."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tasks.base import Row
from tasks.data.reading.column_names import is_name, safe_names


@dataclass(frozen=True)
class ColumnUse:
    """The names of the used and the ignored columns of a source, without names that may quote a person's text."""

    # canonical columns: "chosen", "prompt from instruction+input", "client from judge"
    used: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    def line(self) -> str:
        """A summary such as `prompt from question; chosen, rejected; ignored: id`."""
        renamed = [name for name in self.used if " from " in name]
        plain = [name for name in self.used if " from " not in name]
        ignored = f"ignored: {', '.join(self.ignored)}" if self.ignored else ""
        return "; ".join(part for part in (*renamed, ", ".join(plain), ignored) if part)

    def outside(self) -> "ColumnUse":
        """The part that may leave a site: the names of canonical columns, and the number of ignored ones."""
        used = tuple(name.split(" from ")[0] for name in self.used)
        return ColumnUse(used, (f"{len(self.ignored)} others",) if self.ignored else ())


@dataclass(frozen=True)
class ConvertedRow:
    """A row in canonical form, with the source columns of each canonical column."""

    row: Row
    sources: Mapping[str, tuple[str, ...]]  # canonical column to the user's columns
    ignored: tuple[str, ...]


@dataclass
class Columns:
    """A running tally of the columns of many rows."""

    sources: dict[str, dict[str, None]] = field(default_factory=dict)
    ignored: set[str] = field(default_factory=set)

    def count(self, converted: ConvertedRow, client_column: str) -> None:
        for name, columns in converted.sources.items():
            self.sources.setdefault(name, {}).update(dict.fromkeys(columns))
        if client_column:
            self.sources.setdefault("client", {})[client_column] = None
        self.ignored.update(name for name in converted.ignored if name != client_column)

    def use(self) -> ColumnUse:
        used = []
        for name, columns in self.sources.items():
            labels = [column if is_name(column) else "another column" for column in columns]
            used.append(name if labels == [name] else f"{name} from {'+'.join(labels)}")
        # a column may be used in some rows and blank, so ignored, in others (`input`)
        used_columns = {column for columns in self.sources.values() for column in columns}
        return ColumnUse(tuple(used), tuple(safe_names(self.ignored - used_columns)))
