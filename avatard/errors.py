"""What a user can cure. Every such error derives from `UserError`; any other exception is a bug."""

from __future__ import annotations

from typing import ClassVar


class UserError(Exception):
    """One line that says what was got, what was expected and what to do.

    Args:
        message: for people.
        code: for programs, lower case with hyphens; that of the class unless given.
        fields: for programs, such as the number of faces in a picture; JSON values.
    """

    CODE: ClassVar[str] = "invalid"

    def __init__(self, message: str, *, code: str | None = None, **fields: object) -> None:
        super().__init__(message)
        self.code = code or self.CODE
        self.fields = fields
