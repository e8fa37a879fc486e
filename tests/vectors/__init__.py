"""Reference values, computed in float64 from the published equations and recorded from the originals."""

import json
from pathlib import Path

_FOLDER = Path(__file__).parent
OPENFEDLLM = json.loads((_FOLDER / "openfedllm.json").read_text())
FEDBISCUIT = json.loads((_FOLDER / "fedbiscuit.json").read_text())
