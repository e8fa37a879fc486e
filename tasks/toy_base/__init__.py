"""The embedded base models: tiny Llamas trained on the toy language, each stored in one text file.

A file is JSON, because Flower's bundle takes no binary files: `files` holds the JSON files of the model's folder, and
`model.safetensors` its weights, as lines of base64 of zlib of first the bytes at even places, then those at odd
places. Next to each other, the high bytes of bfloat16 numbers compress to a third. xz or base85 in place of zlib or
base64 would each save about 5 % more, but take 15 to 30 ms to decode instead of 1.
"""

import base64
import hashlib
import json
import os
import zlib
from pathlib import Path

from core import atomic

HERE = Path(__file__).parent
# By model.name; the judge is also trained on the prompts of tasks/tokens/choice.py.
FILES = {"toy": HERE / "base.json", "toy-judge": HERE / "judge.json"}
WEIGHTS = "model.safetensors"


def contents(text: str) -> dict[str, bytes]:
    """The files of a model's folder, by name, from the text of one of FILES."""
    page = json.loads(text)
    files = {name: json.dumps(content, indent=2).encode() for name, content in page["files"].items()}
    planes = zlib.decompress(base64.b64decode("".join(page[WEIGHTS])))
    weights, half = bytearray(len(planes)), (len(planes) + 1) // 2
    weights[0::2], weights[1::2] = planes[:half], planes[half:]
    return {**files, WEIGHTS: bytes(weights)}


def folder(name: str = "toy") -> Path:
    """An embedded base model as a Hugging Face folder; unpacked on the first call on a machine.

    The folder is $ACCORD_HOME/models/NAME-DIGEST (~/.accord by default), with the digest of its file. It is created
    atomically, also when several processes unpack at once, with the same bytes on every machine.
    """
    text = FILES[name].read_bytes()
    home = Path(os.environ.get("ACCORD_HOME") or Path.home() / ".accord")
    place = home / "models" / f"{name}-{hashlib.blake2b(text, digest_size=6).hexdigest()}"
    if place.is_dir():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with atomic.folder(place, mode=0o755, replace=False) as part:  # another process may be first
        for file, content in contents(text.decode()).items():
            (part / file).write_bytes(content)
    return place
