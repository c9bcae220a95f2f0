"""JSON from outside."""

from __future__ import annotations

import json
from typing import Any


def parse_object(text: str | bytes) -> dict[str, Any]:
    """The JSON object of a text.

    Raises:
        ValueError: it is something else, or nested too deeply to be read.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("expected JSON") from None
    if not isinstance(found, dict):
        raise ValueError("expected a JSON object")
    return found
