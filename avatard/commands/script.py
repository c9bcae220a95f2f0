"""Run the `main` of a file under `scripts/` as a command, so that all of them take options and report errors alike."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final

import typer

from avatard.errors import UserError

#: Exit code after an error that the user can cure, as typer's for unusable options.
USER_ERROR: Final = 2


def run_script(main: Callable[..., None]) -> None:
    """Call `main` with the command line's options; its module's docstring is the help.

    A `UserError` becomes one line on standard error and exit code 2.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    # \b keeps click from wrapping a paragraph anew.
    paragraphs = (main.__globals__["__doc__"] or "").strip().split("\n\n")
    app.command(help="\n\n".join(f"\b\n{paragraph}" for paragraph in paragraphs))(main)
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
