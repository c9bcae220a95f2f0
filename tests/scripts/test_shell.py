"""scripts/setup, which the other shell scripts call first: at once when ready, one line with the cure when it fails."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.paths import ROOT

TOOLS = ["sh", "awk", "cat", "cksum", "df", "dirname", "grep", "rm"]

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the scripts are for POSIX shells")


@pytest.fixture
def checkout(tmp_path):
    """What setup reads, and a PATH with the tools it needs and no Python."""
    for name in ("pyproject.toml", "scripts/setup", "scripts/constraints.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool) or tool)
    return tmp_path


def setup(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", checkout / "scripts/setup", "scripts/test", "dev"],
        capture_output=True,
        text=True,
        env={"PATH": str(checkout / "bin"), **environment},
    )


def test_without_python_the_last_line_names_the_cure(checkout):
    ran = setup(checkout)
    assert ran.returncode == 1
    assert ran.stderr == (
        "scripts/test: no Python 3.11 or newer on the PATH: install it from python.org or your system, or set PYTHON\n"
    )


def executable(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_without_room_or_packages_the_last_line_names_the_cure(checkout):
    # An environment that is there, recent enough, and whose pip finds nothing.
    executable(checkout / ".venv/bin/python", '[ "$1" = -c ] || { echo "  ERROR: No matching distribution"; exit 1; }')
    executable(checkout / "bin/df", "echo Filesystem; echo disk 9 9 2048000 9 /")
    ran = setup(checkout)
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1].endswith("has 2000 MB free: make room and run again")

    executable(checkout / "bin/df", "echo Filesystem; echo disk 9 9 9999999 9 /")
    ran = setup(checkout)
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1] == (
        "scripts/test: pip failed (ERROR: No matching distribution): "
        "see .venv/setup.log, check the network and run again"
    )
    assert not list((checkout / ".venv").glob(".installed-*"))


def test_what_is_ready_is_not_done_again(checkout):
    stamp = checkout / ".venv/.installed-dev"
    stamp.parent.mkdir()
    sums = subprocess.run(
        "cat pyproject.toml scripts/constraints.txt | cksum", shell=True, cwd=checkout, capture_output=True, text=True
    )
    stamp.write_text(f"{sums.stdout.strip()} {checkout}\n")
    ran = setup(checkout)
    assert (ran.returncode, ran.stderr) == (0, "")
    with (checkout / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    assert setup(checkout).returncode == 1
