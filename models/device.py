"""The device that networks run on: a GPU by CUDA or MPS, or the processor."""

from __future__ import annotations

from typing import Final

import torch

from avatard.errors import UserError

CPU: Final = torch.device("cpu")


class DeviceError(UserError):
    """A device that is not there."""

    CODE = "device"


def choose_device(wanted: str = "auto") -> torch.device:
    """The device for `auto` (the GPU where there is one, else the CPU), `cpu`, `mps` or `cuda`.

    Raises:
        DeviceError: it is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    usable = [kind for kind, is_there in there.items() if is_there]
    if wanted == "auto":
        return torch.device(usable[0])
    if wanted.partition(":")[0] not in usable:
        raise DeviceError(f"no device {wanted!r} here: use --device auto or one of {', '.join(usable)}")
    return torch.device(wanted)
