"""Read the records of a CSV, TSV, JSON or Parquet file. Nothing is written to disk, and no error quotes a value."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.errors import DataError
from core.types import Json
from tasks.data.reading.columns import CONFIDENCE, BadRow
from tasks.data.reading.lines import BOM, HEAD_BYTES, not_text, numbered_lines, opened, parse

DELIMITERS = {".csv": ",", ".tsv": "\t"}
ENDINGS = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".json", ".json.gz", ".parquet")
TRUTH = {"true": True, "false": False}
MAX_CELL = 1 << 30  # characters; the default of csv, 131072, is shorter than some conversations
BATCH = 256  # rows of a Parquet file that are converted at a time

Record = tuple[str, Json | BadRow]  # ("line 7", its columns), or why it could not be read


def records(file: Path) -> Iterator[Record]:
    """The records of a file in order, by the ending of its name: one of ENDINGS.

    Raises DataError for a file that is not of the format of its ending, and for one that cannot be read to its end.
    """
    ending = Path(file.name.lower().removesuffix(".gz")).suffix
    if ending == ".parquet":
        return _parquet(file)
    return _json(file) if ending == ".json" else _delimited(file, DELIMITERS[ending])


def _delimited(file: Path, delimiter: str) -> Iterator[Record]:
    """The lines under a header. An empty cell is null; `label` and `label_confidence` are converted from text."""
    csv.field_size_limit(MAX_CELL)
    with opened(file) as content:
        _check_text(file, content)
        lines = csv.reader(
            io.TextIOWrapper(content, "utf-8-sig", newline=""), delimiter=delimiter, strict=True
        )
        header: list[str] | None = None
        start = 1
        try:
            for cells in lines:
                where, start = f"line {start}", lines.line_num + 1
                if not cells:
                    continue  # a blank line
                if header is None:
                    header = _header(file, cells)
                elif len(cells) != len(header):
                    yield where, BadRow(f"does not have as many cells as the header, {len(header)}")
                else:
                    yield where, {name: _value(name, cell) for name, cell in zip(header, cells, strict=True)}
        except csv.Error as error:
            raise DataError(
                f"{file.name} line {start}: {error}; cells that hold quotes or line breaks are written in double "
                "quotes, and a quote inside them is doubled",
                names=[file.name],
            ) from None
        except UnicodeDecodeError:
            raise DataError(
                f"{file.name} is not UTF-8 text; convert it (iconv -t UTF-8)", names=[file.name]
            ) from None


def _header(file: Path, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if len(set(names)) < len(names):
        raise DataError(f"{file.name}: its header names a column twice", names=[file.name])
    return names


def _value(name: str, cell: str) -> Json:
    if not cell:
        return None
    if name == "label":
        return TRUTH.get(cell.strip().lower(), cell)
    if name == CONFIDENCE:
        try:
            return float(cell)
        except ValueError:
            return cell
    return cell


def _json(file: Path) -> Iterator[Record]:
    """The objects of an array, or of lines."""
    with opened(file) as content:
        _check_text(file, content)
        is_array = content.peek(HEAD_BYTES).removeprefix(BOM.encode()).lstrip().startswith(b"[")
        whole = content.read() if is_array else b""
    if not is_array:
        for number, line in numbered_lines(file):
            yield f"line {number}", _parsed(line)
        return
    rows = _parsed(whole)
    if isinstance(rows, BadRow):
        raise DataError(f"{file.name} {rows}; expected an array of JSON objects", names=[file.name])
    for number, row in enumerate(rows, start=1):
        yield f"row {number}", row


def _parsed(text: bytes) -> Json | BadRow:
    try:
        return parse(text)
    except BadRow as error:
        return error


def _check_text(file: Path, content: "io.BufferedReader[Any]") -> None:  # Any: gzip or plain
    if problem := not_text(content.peek(HEAD_BYTES)[:HEAD_BYTES]):
        raise DataError(f"{file.name} is {problem}", names=[file.name])


def _parquet(file: Path) -> Iterator[Record]:
    import pyarrow  # takes a second, which a site with other files does not pay
    from pyarrow import parquet

    try:
        batches = parquet.ParquetFile(file).iter_batches(batch_size=BATCH)
        rows: Iterator[dict[str, Any]] = (
            row for batch in batches for row in batch.to_pylist()
        )  # Any: Parquet
        for number, row in enumerate(rows, start=1):
            yield f"row {number}", row
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # their messages may quote a value
        raise DataError(
            f"{file.name} cannot be read as a Parquet file ({type(error).__name__}); copy or write it again",
            names=[file.name],
        ) from None
