"""Run a file under scripts/ in this process."""

import runpy
import sys
from typing import Any
from unittest.mock import patch

from tests.support.paths import SCRIPTS


def run_script(name: str, *arguments: object) -> int:
    """The exit code of `python scripts/NAME.py ARGUMENTS`."""
    with patch.object(sys, "argv", [name, *map(str, arguments)]):
        try:
            runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
        except SystemExit as done:
            return int(done.code or 0)
    return 0


def script_names(name: str) -> dict[str, Any]:
    """What a script defines, by name."""
    return runpy.run_path(str(SCRIPTS / f"{name}.py"))
