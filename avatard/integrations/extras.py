"""Packages that only one integration needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from avatard.errors import UserError


class MissingExtraError(UserError):
    """An optional package is not installed."""

    CODE = "not-installed"


@contextmanager
def needs(extra: str, package: str) -> Iterator[None]:
    """Say what to install where an import in it fails for want of `package`.

    Args:
        extra: of avatard, that installs it.
        package: the name under which it is imported.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != package:
            raise
        raise MissingExtraError(f"{package} is not installed: pip install 'avatard[{extra}]'") from error
