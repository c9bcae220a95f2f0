"""What the files under `scripts/` share: options, errors and downloads are handled alike by all of them."""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from avatard.errors import UserError

#: Exit code after an error that the user can cure, as typer's for unusable options.
USER_ERROR: Final = 2


def run_script(main: Callable[..., None]) -> None:
    """Call `main` with the command line's options; its module's docstring is the help.

    A `UserError` becomes one line on standard error and exit code 2.
    """
    import typer

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    # \b keeps click from wrapping a paragraph anew.
    paragraphs = (main.__globals__["__doc__"] or "").strip().split("\n\n")
    app.command(help="\n\n".join(f"\b\n{paragraph}" for paragraph in paragraphs))(main)
    with _one_line():
        app()


def run_parsed(main: Callable[..., None], parser: argparse.ArgumentParser) -> None:
    """The same for scripts that run on machines without typer: `main` gets what the parser finds, by name."""
    parser.description = main.__globals__["__doc__"]
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    with _one_line():
        main(**vars(parser.parse_args()))


@contextmanager
def _one_line() -> Iterator[None]:
    """A `UserError` ends the process with one line and exit code 2."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)


class DownloadError(UserError):
    """A package that cannot be downloaded, or is another than expected."""


def download_wheel(package: str, folder: Path, *options: str) -> Path:
    """Let pip download `NAME==VERSION` without its dependencies. Raises `DownloadError`."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *options, "-d", str(folder), package]
    if subprocess.run(command, check=False).returncode:
        raise DownloadError(f"pip could not download {package}")
    return next(folder.glob("*.whl"))


def check_digest(name: str, content: bytes, expected: str) -> None:
    """Raise `DownloadError` unless the SHA-256 of `content` is `expected`."""
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise DownloadError(f"{name} has sha256 {found}, expected {expected}")
