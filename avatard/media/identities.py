"""Portraits that were uploaded once and are used by name, each a folder on disk: the picture, and what is known of it.

    identities = Identities(Path("data"))
    identities.add("ada", Portrait(data))
    portrait = identities.portrait("ada")

Functions that write block for as long as the disk takes: call them on a thread.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from avatard.errors import UserError
from avatard.media.image_file import read_image
from avatard.portrait import Portrait

#: What an identity may be called: a folder's name, nothing hidden.
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MAX_IDENTITIES: Final = 1000
PICTURE, RECORD = "picture", "identity.json"


class IdentityError(UserError):
    """An identity that cannot be kept."""

    CODE = "identity"


class UnknownIdentityError(IdentityError):
    """There is no identity of this name."""

    CODE = "unknown-identity"


class KnownIdentityError(IdentityError):
    """There is another identity of this name."""

    CODE = "exists"


class ManyIdentitiesError(IdentityError):
    """One identity too many."""

    CODE = "full"


class Identity(msgspec.Struct, frozen=True):
    """What is known of a portrait."""

    name: str
    digest: str  # SHA-256 of the picture's file
    bytes: int
    face: int = 0  # which one, from the left and from 1; 0: its only one


class Identities:
    """The identities of a folder.

    Args:
        folder: of the data, made if it is not there; None for one that goes when the daemon does.

    Raises:
        IdentityError: the folder cannot be used.
    """

    def __init__(self, folder: Path | None) -> None:
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._folder = folder / "identities" if folder is not None else None
        self._known: dict[str, Identity] = {}
        if self._folder is not None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                for record in sorted(self._folder.glob(f"[!.]*/{RECORD}")):
                    self._known[record.parent.name] = msgspec.json.decode(record.read_bytes(), type=Identity)
            except (OSError, msgspec.DecodeError) as error:
                raise IdentityError(f"server.data_dir: {self._folder} cannot be used: {error}") from None

    def __iter__(self) -> Iterator[Identity]:
        return iter(self._known.values())

    def __len__(self) -> int:
        return len(self._known)

    def close(self) -> None:
        """Remove what was kept for this run alone."""
        if self._temporary is not None:
            self._temporary.cleanup()

    def add(self, name: str, portrait: Portrait) -> Identity:
        """Keep a portrait; the same picture under the same name again changes nothing.

        Args:
            name: what to call it; empty for a name made from the picture.
            portrait: the picture.

        Raises:
            ImageError: it is no picture that can be read.
            IdentityError: the name cannot be used, or the disk is full.
            KnownIdentityError: there is another picture of this name.
            ManyIdentitiesError: there are as many identities as there may be.
        """
        digest = hashlib.sha256(portrait.data).hexdigest()
        new = Identity(name or digest[:16], digest, len(portrait.data), portrait.face)
        if not NAME.fullmatch(new.name):
            raise IdentityError(f"got the name {name[:80]!r}, expected letters, digits and ._-, at most 64")
        known = self._known.get(new.name)
        if known == new:
            return known
        if known is not None:
            raise KnownIdentityError(f"there is another picture named {new.name}: DELETE it first, or choose a name")
        if len(self) >= MAX_IDENTITIES:
            raise ManyIdentitiesError(f"there are {MAX_IDENTITIES:,} identities: DELETE one first")
        read_image(portrait.data, "the picture")
        self._known[new.name] = new  # no other thread may begin the same name
        try:
            self._write(new, portrait.data)
        except OSError as error:
            del self._known[new.name]
            raise IdentityError(f"the identity cannot be kept: {error.strerror}", code="disk") from None
        return new

    def remove(self, name: str) -> Identity:
        """Forget an identity; rooms that show it go on. Raises `UnknownIdentityError`."""
        found = self._find(name)
        del self._known[name]
        shutil.rmtree(self._path(name), ignore_errors=True)
        return found

    def portrait(self, name: str) -> Portrait:
        """The picture of this name. Raises `UnknownIdentityError`."""
        found = self._find(name)
        try:
            return Portrait((self._path(name) / PICTURE).read_bytes(), found.face, name)
        except OSError as error:
            raise UnknownIdentityError(f"the picture of {name} cannot be read: {error.strerror}") from None

    def _find(self, name: str) -> Identity:
        found = self._known.get(name)
        if found is None:
            raise UnknownIdentityError(
                f"there is no identity named {name[:80]!r}: POST /api/identities?name=NAME makes one"
            )
        return found

    def _path(self, name: str) -> Path:
        """Where an identity is kept."""
        if self._folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="avatard-")
            self._folder = Path(self._temporary.name)
        return self._folder / name

    def _write(self, identity: Identity, data: bytes) -> None:
        """Write both files, all or none: a folder gets its name when it is whole."""
        path = self._path(identity.name)
        with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as temporary:
            whole = Path(temporary) / "whole"
            whole.mkdir()
            (whole / PICTURE).write_bytes(data)
            (whole / RECORD).write_bytes(msgspec.json.encode(identity))
            shutil.rmtree(path, ignore_errors=True)  # what a crash left there
            whole.rename(path)
