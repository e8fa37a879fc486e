"""The embedded base models: tiny Llamas trained on the toy language, each stored in one text file."""

import base64
import hashlib
import json
import os
from pathlib import Path

from core import atomic

HERE = Path(__file__).parent
# By model.name; the judge is also trained on the prompts of tasks/tokens/choice.py.
FILES = {"toy": HERE / "base.json", "toy-judge": HERE / "judge.json"}


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
    page = json.loads(text)
    with atomic.folder(place, mode=0o755, replace=False) as part:  # another process may be first
        for name, content in page["files"].items():
            (part / name).write_text(json.dumps(content, indent=2))
        (part / "model.safetensors").write_bytes(base64.b64decode("".join(page["model.safetensors"])))
    return place
