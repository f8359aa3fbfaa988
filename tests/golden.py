"""Where the golden data of the official implementations lies; see ../shared/golden/README.md."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"


def require_golden() -> Path:
    """The folder of golden data; skips the test where it is not there."""
    if not GOLDEN.exists():
        pytest.skip(f"no golden data at {GOLDEN}: this test compares with the official implementation's outputs")
    return GOLDEN


def load_golden(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """meta.json and arrays of one folder of golden data."""
    folder = require_golden() / name
    return json.loads((folder / "meta.json").read_text()), dict(np.load(folder / "data.npz"))


def load_state(name: str) -> dict[str, torch.Tensor]:
    """The official state dict of one folder, float32."""
    return {key: value.float() for key, value in load_file(require_golden() / name / "state.safetensors").items()}
