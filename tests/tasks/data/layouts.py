"""Files in many layouts, and what the refusal of each must name."""

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path

SECRET = "marker-7f3a"
PAIRS = [{"prompt": f"q{n}", "chosen": f"good{n} {SECRET}", "rejected": f"bad{n}"} for n in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in PAIRS).encode()
A, B = b'{"role": "assistant", "content": "a"}', b'{"role": "assistant", "content": "b"}'
DUPLICATE = b'{"prompt": "q", "prompt": "r", "chosen": "a", "rejected": "b"}\n'


def in_file(name: str, data: bytes) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return build


def as_file(data: bytes) -> Callable[[Path], Path]:
    return in_file("a.jsonl", data)


def after_rows(data: bytes) -> Callable[[Path], Path]:
    """Three good rows, and this."""
    return in_file("a.jsonl", LINES + data)


def in_folder(**files: bytes | None) -> Callable[[Path], Path]:
    """Files by name, with DOT for a dot and SLASH for a folder; None makes a folder."""

    def build(folder: Path) -> Path:
        for name, data in files.items():
            path = folder / name.replace("DOT", ".").replace("SLASH", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            if data is None:
                path.mkdir()
            else:
                path.write_bytes(data)
        return folder

    return build


def linked(folder: Path) -> Path:
    (folder / "target").write_bytes(LINES)
    (folder / "north.jsonl").symlink_to(folder / "target")
    return folder


def dangling(folder: Path) -> Path:
    (folder / "north.jsonl").symlink_to(folder / "gone")
    return folder


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "north.jsonl")
    return folder


def gz(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def bit_flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]


READ = {
    "plain": as_file(LINES),
    "gzip": in_file("a.jsonl.gz", gz(LINES)),
    "gzip of several members": in_file(
        "a.jsonl.gz", gz(LINES[: len(LINES) // 3]) + gz(LINES[len(LINES) // 3 :])
    ),
    "gzip without its ending": as_file(gz(LINES)),
    "plain text with the ending of gzip": in_file("a.jsonl.gz", LINES),
    "UTF-8 with a BOM": as_file(b"\xef\xbb\xbf" + LINES),
    "files with a BOM, joined": as_file(LINES.replace(b"{", b"\xef\xbb\xbf{")),
    "CRLF": as_file(LINES.replace(b"\n", b"\r\n")),
    "no newline at the end": as_file(LINES[:-1]),
    "blank lines": as_file(b"\n  \n" + LINES.replace(b"\n", b"\n\n\t\n")),
    "another ending": in_file("train.json", LINES),
    "upper case": in_folder(NorthDOTJSONL=LINES),
    "files of macOS and notebooks": in_folder(
        northDOTjsonl=LINES,
        DOT_northDOTjsonl=b"\0\5\x16\7",
        DOTDS_Store=b"\0",
        DOTipynb_checkpointsSLASHxDOTjsonl=LINES,
    ),
    "a link": linked,
    "an empty key for nothing": as_file(
        LINES.replace(b"{", b'{"system": "", "history": [], "label": null, ')
    ),
    "NaN in a column that is left out": as_file(LINES.replace(b"{", b'{"margin": NaN, "id": Infinity, ')),
}

REFUSED = {  # what the line must name: file, place, what to do
    "empty": (as_file(b""), ["a.jsonl holds no row"]),
    "blank": (as_file(b" \n\n"), ["a.jsonl holds no row"]),
    "an empty gzip": (in_file("a.jsonl.gz", gz(b"")), ["a.jsonl.gz holds no row"]),
    "no path": (lambda folder: folder / "gone.jsonl", ["gone.jsonl", "does not exist"]),
    "an empty folder": (in_folder(), ["the folder is empty", ".jsonl"]),
    "JSON array": (as_file(json.dumps(PAIRS).encode()), ["a.jsonl is one JSON array", "jq -c '.[]'"]),
    "JSON array over lines": (as_file(json.dumps(PAIRS, indent=1).encode()), ["one JSON array"]),
    "JSON array in .json": (
        in_file("train.json", json.dumps(PAIRS).encode()),
        ["train.json is one JSON array"],
    ),
    "rows within an object": (as_file(json.dumps({"data": PAIRS}).encode()), ["a.jsonl", "got data"]),
    "pretty-printed": (
        as_file(json.dumps(PAIRS[0], indent=2).encode()),
        ["a.jsonl is JSON over several lines", "jq -c ."],
    ),
    "an object broken over lines": (
        as_file(LINES.replace(b", ", b",\n")),
        ["a.jsonl", "over several lines", "one JSON object per line"],
    ),
    "two rows on a line": (
        as_file(LINES.replace(b"}\n", b"} ")),
        ["a.jsonl", "line 1", "Extra data", "one JSON object per line"],
    ),
    "commas after rows": (
        as_file(LINES.replace(b"}", b"},")),
        ["a.jsonl", "3 x malformed JSON: Extra data", "no comma"],
    ),
    "CSV": (
        in_file("a.csv", b"prompt,chosen,rejected\nq,a,b\n"),
        ["a.csv", "CSV", "one JSON object per line"],
    ),
    "CSV with the ending of rows": (
        as_file(b"prompt,chosen,rejected\nq,a,b\n"),
        ["a.jsonl", "2 x malformed JSON", "CSV"],
    ),
    "HTML": (as_file(b"<!DOCTYPE html><html>log in</html>\n"), ["a.jsonl", "line 1", "HTML"]),
    "Python": (as_file(str(PAIRS[0]).encode() + b"\n"), ["a.jsonl", "line 1", "single quotes"]),
    "a comment": (as_file(b"# my rows\n" + LINES), ["a.jsonl line 1", "a comment"]),
    "numbers": (as_file(b"1\n2\n"), ["a.jsonl", "2 x is no JSON object"]),
    "strings": (as_file(b'"x"\n'), ["a.jsonl", "is no JSON object"]),
    "lists": (as_file(b'["q", "a", "b"]\n' * 2), ["a.jsonl", "is no JSON object"]),
    "a key twice": (after_rows(DUPLICATE), ["a.jsonl line 4", "twice"]),
    "garbage at the end": (after_rows(b"\0\0\0\0\n"), ["a.jsonl line 4", "NUL"]),
    "a half line at the end": (after_rows(LINES[:30]), ["a.jsonl line 4", "malformed JSON"]),
    "Latin-1": (
        after_rows(b'{"prompt": "\xe9t\xe9", "chosen": "a", "rejected": "b"}\n'),
        ["a.jsonl line 4", "UTF-8"],
    ),
    "UTF-16": (as_file(LINES.decode().encode("utf-16")), ["a.jsonl is UTF-16", "iconv"]),
    "UTF-16 without a BOM": (as_file(LINES.decode().encode("utf-16-le")), ["a.jsonl is UTF-16", "iconv"]),
    "UTF-32": (as_file(LINES.decode().encode("utf-32")), ["a.jsonl is UTF-", "UTF-8"]),
    "CR alone": (as_file(LINES.replace(b"\n", b"\r")), ["a.jsonl", "CR alone", "tr"]),
    "zstd": (in_file("a.jsonl.zst", b"\x28\xb5\x2f\xfd\x04\x00"), ["a.jsonl.zst", "zstd", "unzstd"]),
    "bzip2": (in_file("a.jsonl.bz2", bz2.compress(LINES)), ["a.jsonl.bz2", "bunzip2"]),
    "xz": (in_file("a.jsonl.xz", lzma.compress(LINES)), ["a.jsonl.xz", "unxz"]),
    "zip": (as_file(b"PK\x03\x04rest"), ["a.jsonl", "zip", "unpack"]),
    "Parquet": (as_file(b"PAR1\x15\x04"), ["a.jsonl", "Parquet", "data.source = 'tabular'"]),
    "tar": (
        in_file("a.jsonl.gz", gz(b"x.jsonl".ljust(257, b"\0") + b"ustar\x0000")),
        ["a.jsonl.gz is a tar archive"],
    ),
    "Git LFS": (
        as_file(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        ["a.jsonl is a Git LFS pointer", "git lfs pull"],
    ),
    "gzip that ends early": (
        in_file("a.jsonl.gz", gz(LINES)[:-9]),
        ["a.jsonl.gz", "gzip", "break off", "lines can be read"],
    ),
    "gzip with a flipped byte": (
        in_file("a.jsonl.gz", bit_flipped(gz(LINES), 40)),
        ["a.jsonl.gz", "gzip", "lines can be read"],
    ),
    "gzip with a flipped checksum": (
        in_file("a.jsonl.gz", bit_flipped(gz(LINES), len(gz(LINES)) - 6)),
        ["a.jsonl.gz", "gzip", "checksum", "3 lines can be read"],
    ),
    "gzip with a flipped flag": (
        in_file("a.jsonl.gz", bit_flipped(gz(LINES), 2)),
        ["a.jsonl.gz", "gzip"],
    ),
    "gzip with a tail": (
        in_file("a.jsonl.gz", gz(LINES) + b"tail"),
        ["a.jsonl.gz", "gzip", "other data follow"],
    ),
    "a lone surrogate": (
        after_rows(b'{"prompt": "\\ud800", "chosen": "a", "rejected": "b"}\n'),
        ["a.jsonl line 4", "prompt", "surrogate"],
    ),
    "a surrogate in a message": (
        after_rows(
            b'{"prompt": [{"role": "user", "content": "\\udc00"}], "chosen": [%s], "rejected": [%s]}\n'
            % (A, B)
        ),
        ["a.jsonl line 4", "prompt", "surrogate"],
    ),
    "a surrogate for a client": (
        after_rows(LINES.replace(b"{", b'{"client_id": "\\ud800", ')),
        ["a.jsonl line 4", "client_id", "surrogate"],
    ),
    "a NUL character": (
        after_rows(b'{"prompt": "\\u0000x", "chosen": "a", "rejected": "b"}\n'),
        ["a.jsonl line 4", "prompt", "NUL"],
    ),
    "an integer of 5000 digits": (
        after_rows(b'{"id": ' + b"7" * 5000 + b"}\n"),
        ["a.jsonl line 4", "digits"],
    ),
    "100,000 brackets": (after_rows(b"[" * 100_000 + b"\n"), ["a.jsonl line 4", "nested"]),
    "100,000 brackets in a row": (
        after_rows(b'{"prompt": ' + b"[" * 100_000 + b"\n"),
        ["a.jsonl line 4", "nested"],
    ),
    "a message of 200 levels": (
        after_rows(
            b'{"prompt": [{"role": "user", "content": "q", "x": %s}], "completion": [%s]}\n'
            % (b"[" * 200 + b"]" * 200, A)
        ),
        ["a.jsonl line 4", "nested"],
    ),
    "a client that is a list": (
        as_file(LINES.replace(b"{", b'{"client_id": [1], ')),
        ["a.jsonl", "client_id", "list"],
    ),
    "rows of two kinds": (
        as_file(b'{"prompt": "p", "completion": "c"}\n' + LINES),
        ["a.jsonl line 1", "demonstrations", "most rows are pairs"],
    ),
    "a file of another kind": (
        in_folder(northDOTjsonl=LINES, southDOTjsonl=b'{"prompt": "p", "completion": "c"}\n'),
        ["south.jsonl", "none of its 1 rows", "most rows are pairs"],
    ),
    "metadata beside the rows": (
        in_folder(northDOTjsonl=LINES, metadataDOTjsonl=b'{"name": "set", "rows": 3}\n'),
        ["metadata.jsonl", "none of its 1 rows", "misses columns", "got name+rows"],
    ),
    "files of another ending": (
        in_folder(northDOTndjson=LINES, southDOTparquet=b"PAR1"),
        ["no .jsonl", "north.ndjson", "south.parquet"],
    ),
    "rows in a subfolder": (
        in_folder(trainSLASHnorthDOTjsonl=LINES),
        ["folder train", "train"],
    ),
    "a folder called like a file": (in_folder(northDOTjsonl=None), ["north.jsonl", "is a folder"]),
    "a link to nothing": (dangling, ["north.jsonl", "link"]),
    "a pipe": (pipe, ["north.jsonl", "regular file"]),
    "a client twice": (
        in_folder(northDOTjsonl=LINES, northDOTjsonlDOTgz=gz(LINES)),
        ["north.jsonl and north.jsonl.gz", "client north", "keep one"],
    ),
    "hidden files alone": (in_folder(DOT_northDOTjsonl=b"\0"), ["the folder is empty"]),
}
