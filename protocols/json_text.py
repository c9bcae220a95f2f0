"""JSON from outside."""

from __future__ import annotations

from typing import Any

import msgspec


def parse_object(text: str | bytes) -> dict[str, Any]:
    """The JSON object of a text.

    Raises:
        ValueError: it is something else, or nested too deeply to be read.
    """
    try:
        # Python's own reader takes halves of surrogate pairs, which no message could carry on, and NaN.
        found = msgspec.json.decode(text)
    except (ValueError, RecursionError):
        raise ValueError("expected JSON") from None
    if not isinstance(found, dict):
        raise ValueError("expected a JSON object")
    return found


def text_of(message: dict[str, Any], name: str, most: int = 64) -> str:
    """The text that an object has under a name, cut to `most` characters; nothing where it is no text."""
    value = message.get(name)
    return value[:most] if isinstance(value, str) else ""
