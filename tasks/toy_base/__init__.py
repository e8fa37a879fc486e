"""The embedded bases: tiny Llamas that have learned the toy language, each kept in one text file."""

import base64
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
# By model.name; the judge reads answers, and the prompts of tasks/tokens/choice.py, too.
FILES = {"toy": HERE / "base.json", "toy-judge": HERE / "judge.json"}


def folder(name: str = "toy") -> Path:
    """A base as a Hugging Face folder that loads offline; unpacked on the first call of a machine.

    It lies under $ACCORD_HOME (else ~/.accord) in `models/`, named by the content of its file, and
    appears whole or not at all, also when several processes unpack at once. The same bytes everywhere.
    """
    text = FILES[name].read_bytes()
    home = Path(os.environ.get("ACCORD_HOME") or Path.home() / ".accord")
    place = home / "models" / f"{name}-{hashlib.blake2b(text, digest_size=6).hexdigest()}"
    if place.is_dir():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f"{place.name}.", dir=place.parent))
    page = json.loads(text)
    for name, content in page["files"].items():
        (part / name).write_text(json.dumps(content, indent=2))
    (part / "model.safetensors").write_bytes(base64.b64decode("".join(page["model.safetensors"])))
    part.chmod(0o755)  # mkdtemp makes it private
    try:
        part.rename(place)
    except OSError:  # another process was first
        shutil.rmtree(part)
        if not place.is_dir():
            raise
    return place
