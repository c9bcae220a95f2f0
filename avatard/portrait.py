"""The picture file of a person, as bytes: what travels from the command line or a client to the engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from avatard.errors import UserError


class PortraitError(UserError):
    """A portrait that cannot be used."""

    CODE = "portrait"


@dataclass(frozen=True, slots=True)
class Portrait:
    """The bytes of a picture file, and which of the faces in it is meant."""

    data: bytes
    face: int = 0  # counted from the left and from 1; 0 is its only one
    name: str = "the portrait"  # what messages call it

    @classmethod
    def read(cls, path: Path, face: int = 0) -> Portrait:
        """Read a file.

        Raises:
            PortraitError: it cannot be read.
        """
        try:
            return cls(path.read_bytes(), face, str(path))
        except OSError as error:
            raise PortraitError(f"{path} cannot be read: {error.strerror}") from None
