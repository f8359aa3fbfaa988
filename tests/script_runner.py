"""Scripts called in this process: a child process would spend seconds on the imports that are loaded here already."""

import runpy
import sys
from pathlib import Path
from unittest.mock import patch

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def run_script(name: str, *overrides: str) -> None:
    """Run scripts/NAME.py with KEY=VALUE overrides, as its command line does. What ends the script is raised here."""
    with patch.object(sys, "argv", [name, *overrides]):
        runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
