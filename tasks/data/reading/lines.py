"""Open files, plain or gzip, and parse JSON lines; files of other formats are recognised and refused."""

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from core.errors import DataError
from core.types import Json
from tasks.data.reading.columns import BadRow

HEAD_BYTES = 1 << 16  # read to detect the format of a file
GZIP = b"\x1f\x8b"
MAGIC = {  # first bytes of a file: its format, and what to do
    b"\x28\xb5\x2f\xfd": "compressed with zstd: decompress it (unzstd)",
    b"BZh": "compressed with bzip2: decompress it (bunzip2)",
    b"\xfd7zXZ\0": "compressed with xz: decompress it (unxz)",
    b"\x04\x22\x4d\x18": "compressed with lz4: decompress it (unlz4)",
    b"PK\x03\x04": "a zip archive: unpack it",
    b"7z\xbc\xaf": "a 7z archive: unpack it",
    b"PAR1": "a Parquet file: use data.source = 'tabular', or 'hub' with data.dataset = its folder",
    b"ARROW1": "an Arrow file: convert it",
    b"SQLite format 3": "an SQLite database: export it",
    b"version https://git-lfs": "a Git LFS pointer, not the rows themselves: fetch them (git lfs pull)",
    b"\xff\xfe": "UTF-16 text: save it as UTF-8 (iconv -f UTF-16 -t UTF-8)",
    b"\xfe\xff": "UTF-16 text: save it as UTF-8 (iconv -f UTF-16 -t UTF-8)",
    b"{\0": "UTF-16 text: save it as UTF-8 (iconv -f UTF-16LE -t UTF-8)",
    b"\0{": "UTF-16 text: save it as UTF-8 (iconv -f UTF-16BE -t UTF-8)",
}
EXPECTED = "expected one JSON object per line, plain or gzip"
BOM = "\ufeff"


def numbered_lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """The non-blank lines of a file with their line numbers, from 1.

    Raises DataError for a file of another format and for one that cannot be read to its end.
    """
    with opened(file) as lines:
        _check_head(file, lines.peek(HEAD_BYTES)[:HEAD_BYTES])
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, line


@contextmanager
def opened(file: Path) -> "Iterator[io.BufferedReader[Any]]":  # Any: gzip or plain
    """The bytes of a file, decompressed if it is gzip. Raises DataError if it cannot be read to its end."""
    try:
        with file.open("rb") as raw:
            zipped = raw.peek(2)[:2] == GZIP
            with io.BufferedReader(gzip.GzipFile(fileobj=raw), HEAD_BYTES) if zipped else raw as content:  # type: ignore[arg-type]  # typeshed asks for a RawIOBase
                yield content
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{file.name} is not a complete gzip file: {_describe_damage(error)}; {_readable_lines(file)} lines can be "
            "read, but none of them can be relied on: copy or compress it again",
            names=[file.name],
        ) from None
    except OSError as error:
        raise DataError(
            f"{file} cannot be read: {error.strerror or error}", names=[str(file), file.name]
        ) from None


def parse(line: bytes) -> Json:
    """The JSON value on a line. Raises BadRow, whose message never quotes the line."""
    try:
        text = line.decode().removeprefix(BOM)
    except UnicodeDecodeError:
        raise BadRow("is not UTF-8 text") from None
    if "\0" in text:
        raise BadRow("holds NUL bytes: the file was not written to its end, or is not text")
    try:
        return _DECODER.decode(text.strip())
    except json.JSONDecodeError as error:
        raise BadRow(f"malformed JSON: {error.msg}{_hint(text, error)}", f"at column {error.colno}") from None
    except RecursionError:
        raise BadRow("is nested too deeply") from None
    except ValueError:  # int() refuses more than 4300 digits; JSON has no such limit
        raise BadRow("holds an integer of too many digits") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:  # Any: JSON
    columns = dict(pairs)
    if len(columns) < len(pairs):
        raise BadRow("names a column twice in one object")
    return columns


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _check_head(file: Path, head: bytes) -> None:
    """Raises DataError for a file whose first bytes show that it is not a JSON-lines file."""
    text = head.removeprefix(BOM.encode()).strip()
    problem = not_text(head) or _not_lines(head, text)
    if problem:
        raise DataError(f"{file.name} is {problem}; {EXPECTED}", names=[file.name])


def _not_lines(head: bytes, text: bytes) -> str:
    """What a text is instead of lines of JSON objects, and what to do; "" if its start does not show that."""
    if re.match(rb"\[\s*\{", text):
        return "one JSON array: write its objects on lines of their own (jq -c '.[]' FILE)"
    if re.match(rb"\{[ \t\r]*\n", text):
        return "JSON over several lines: write each object on one line (jq -c . FILE)"
    if b"\r" in text and b"\n" not in head:
        return "text whose lines end in CR alone: end them in LF (tr '\\r' '\\n')"
    return ""


def not_text(head: bytes) -> str:
    """What a file is instead of UTF-8 text, and what to do; "" if its first bytes do not show that."""
    if head[257:262] == b"ustar":  # the magic of a tar header stands at byte 257
        return "a tar archive: unpack it"
    return next((description for magic, description in MAGIC.items() if head.startswith(magic)), "")


def _hint(text: str, error: json.JSONDecodeError) -> str:
    """What the line probably is instead of a JSON object; "" if there is no guess."""
    start = text.lstrip()
    if start.startswith(("#", "//", "/*")):
        return " (a comment, which JSON does not have)"
    if start.startswith("<"):
        return f" (this is HTML or XML; {EXPECTED})"
    if not start.startswith(("{", "[", '"')):
        return f" (is this CSV, or plain text? {EXPECTED})"
    if re.match(r"\{\s*'", start):
        return " (single quotes: Python writes JSON with json.dumps)"
    if error.msg == "Extra data" and start.startswith("{"):
        return f" ({EXPECTED}, and no comma between them)"
    if error.msg == "Extra data":
        return f" (a part of an object over several lines? {EXPECTED})"
    if error.pos >= len(start.rstrip()):
        return " (the object does not end on its line)"
    return ""


def _describe_damage(error: Exception) -> str:
    """The damage of a gzip file without gzip's own message, which may quote bytes of the file."""
    if isinstance(error, EOFError):
        return "its data break off"
    text = str(error)
    if text.startswith(("CRC check failed", "Incorrect length")):
        return "its checksum is not that of its data"
    return "other data follow it" if text.startswith("Not a gzipped file") else "its data are damaged"


def _readable_lines(file: Path) -> int:
    """The number of lines of a damaged gzip file before its fault.

    A piece that fails to decompress is halved until the faulty byte is isolated, so every line before it counts.
    """
    lines, inflate, pieces = 0, zlib.decompressobj(wbits=31), [b""]
    with file.open("rb") as raw:
        while pieces or (pieces := [raw.read(HEAD_BYTES)]) != [b""]:
            piece, before = pieces.pop(0), inflate.copy()
            try:
                lines += inflate.decompress(piece).count(b"\n")
            except zlib.error:
                if len(piece) == 1:
                    break
                inflate, middle = before, len(piece) // 2
                pieces = [piece[:middle], piece[middle:], *pieces]
                continue
            if inflate.eof:  # another gzip member may follow
                pieces, inflate = [inflate.unused_data, *pieces], zlib.decompressobj(wbits=31)
            pieces = [piece for piece in pieces if piece]
    return lines
