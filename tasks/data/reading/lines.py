"""The lines of a file of JSON lines, plain or gzip, and their values. A file of another format is refused by name."""

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.errors import DataError
from core.types import Json
from tasks.data.reading.columns import BadRow

HEAD = 1 << 16  # bytes that show what a file is
GZIP = b"\x1f\x8b"
MAGIC = {  # first bytes: what the file is, and what to do
    b"\x28\xb5\x2f\xfd": "compressed with zstd: decompress it (unzstd)",
    b"BZh": "compressed with bzip2: decompress it (bunzip2)",
    b"\xfd7zXZ\0": "compressed with xz: decompress it (unxz)",
    b"\x04\x22\x4d\x18": "compressed with lz4: decompress it (unlz4)",
    b"PK\x03\x04": "a zip archive: unpack it",
    b"7z\xbc\xaf": "a 7z archive: unpack it",
    b"PAR1": "a Parquet file: use data.source = 'hub' with data.dataset = its folder, or convert it",
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
    """The lines of a file that are not blank, counted from 1. Raises DataError for a file that cannot be read whole."""
    try:
        with file.open("rb") as raw:
            zipped = raw.peek(2)[:2] == GZIP
            with io.BufferedReader(gzip.GzipFile(fileobj=raw), HEAD) if zipped else raw as lines:  # type: ignore[arg-type]  # typeshed asks for a RawIOBase
                _check_head(file, lines.peek(HEAD)[:HEAD])
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        yield number, line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{file.name} is no complete gzip file: {_damage(error)}; {_whole_lines(file)} lines can be read, but "
            "none of them can be relied on: copy or compress it again",
            names=[file.name],
        ) from None
    except OSError as error:
        raise DataError(
            f"{file} cannot be read: {error.strerror or error}", names=[str(file), file.name]
        ) from None


def parse(line: bytes) -> Json:
    """The value on a line. Raises BadRow, which says why and never quotes the line."""
    try:
        text = line.decode().removeprefix(BOM)
    except UnicodeDecodeError:
        raise BadRow("is no UTF-8 text") from None
    if "\0" in text:
        raise BadRow("holds NUL bytes: the file was not written to its end, or is no text")
    try:
        return _DECODER.decode(text.strip())
    except json.JSONDecodeError as error:
        raise BadRow(f"malformed JSON: {error.msg}{_hint(text, error)}", f"at column {error.colno}") from None
    except RecursionError:
        raise BadRow("is nested too deeply") from None
    except ValueError:  # what int() refuses; JSON has no such limit
        raise BadRow("holds an integer of too many digits") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:  # Any: JSON
    made = dict(pairs)
    if len(made) < len(pairs):
        raise BadRow("names a column twice in one object")
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _check_head(file: Path, head: bytes) -> None:
    """Raises DataError for what is certainly no JSON lines, whatever its lines hold."""
    text = head.removeprefix(BOM.encode()).strip()
    what = next((told for magic, told in MAGIC.items() if head.startswith(magic)), "")
    if head[257:262] == b"ustar":
        what = "a tar archive: unpack it"
    elif re.match(rb"\[\s*\{", text):
        what = "one JSON array: write its objects on lines of their own (jq -c '.[]' FILE)"
    elif re.match(rb"\{[ \t\r]*\n", text):
        what = "JSON over several lines: write each object on one line (jq -c . FILE)"
    elif b"\r" in text and b"\n" not in head:
        what = "text whose lines end in CR alone: end them in LF (tr '\\r' '\\n')"
    if what:
        raise DataError(f"{file.name} is {what}; {EXPECTED}", names=[file.name])


def _hint(text: str, error: json.JSONDecodeError) -> str:
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


def _damage(error: Exception) -> str:
    """In our words: those of gzip may quote the bytes."""
    if isinstance(error, EOFError):
        return "its data break off"
    text = str(error)
    if text.startswith(("CRC check failed", "Incorrect length")):
        return "its checksum is not that of its data"
    return "other data follow it" if text.startswith("Not a gzipped file") else "its data are damaged"


def _whole_lines(file: Path) -> int:
    """How many lines a damaged gzip file gives before its fault."""
    lines, inflate, pieces = 0, zlib.decompressobj(wbits=31), [b""]
    with file.open("rb") as raw:
        while pieces or (pieces := [raw.read(HEAD)]) != [b""]:
            piece, before = pieces.pop(0), inflate.copy()
            try:
                lines += inflate.decompress(piece).count(b"\n")
            except zlib.error:
                if len(piece) == 1:
                    break
                inflate, middle = before, len(piece) // 2  # what stands before the fault in this piece
                pieces = [piece[:middle], piece[middle:], *pieces]
                continue
            if inflate.eof:
                pieces, inflate = [inflate.unused_data, *pieces], zlib.decompressobj(wbits=31)
            pieces = [piece for piece in pieces if piece]
    return lines
