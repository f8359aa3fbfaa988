"""Golden data of the official implementations; see tests/data/README.md."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

GOLDEN = Path(__file__).parent / "data" / "golden"


def load_golden(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """meta.json and arrays of one folder of golden data."""
    return json.loads((GOLDEN / name / "meta.json").read_text()), dict(np.load(GOLDEN / name / "data.npz"))


def load_state(name: str) -> dict[str, torch.Tensor]:
    """The official state dict of one folder, float32."""
    return {key: value.float() for key, value in load_file(GOLDEN / name / "state.safetensors").items()}
