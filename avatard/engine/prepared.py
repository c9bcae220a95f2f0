"""Portraits that the networks have seen lately: a second room with the same one need not wait for them."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Final

import numpy as np
from numpy.typing import NDArray

from avatard.engine.identity import Identity
from avatard.engine.video_stream import PreparedPortrait
from avatard.models.mcvdm.model import Mcvdm
from avatard.portrait import Portrait

#: Portraits kept: 3 MB each, and 3 bytes for each pixel of the photograph.
KEPT: Final = 8


class PreparedPortraits:
    """What does not depend on how a portrait is shown; nothing of it is ever changed.

    Args:
        mcvdm: the networks.
    """

    def __init__(self, mcvdm: Mcvdm) -> None:
        self._mcvdm = mcvdm
        self._known: OrderedDict[tuple[str, int], tuple[Identity, PreparedPortrait]] = OrderedDict()

    def find(self, portrait: Portrait, mean: NDArray[np.float32]) -> tuple[Identity, PreparedPortrait]:
        """The person in a portrait; `mean` is the 3DMM's mean face.

        Raises:
            UserError: the portrait cannot be used.
        """
        key = hashlib.sha256(portrait.data).hexdigest(), portrait.face
        found = self._known.pop(key, None)
        if found is None:
            identity = Identity.find(portrait)
            found = identity, PreparedPortrait.of(self._mcvdm, identity, mean)
        self._known[key] = found
        while len(self._known) > KEPT:
            self._known.popitem(last=False)
        return found
