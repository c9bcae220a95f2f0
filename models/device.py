"""The device that the networks run on: a GPU by CUDA or MPS, or the processor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch.nn import functional as F

from avatard.errors import UserError

CPU: Final = torch.device("cpu")
#: Devices in the order in which `auto` looks for them.
PREFERRED: Final = ("cuda", "mps", "cpu")


class DeviceError(UserError):
    """A device that is not there, does not do what the networks need, or has no memory left; one line."""

    CODE = "device"


def choose_device(wanted: str = "auto") -> torch.device:
    """The device for a setting of `inference.device`: `auto`, `cpu`, `mps`, `cuda` or `cuda:N`.

    `auto` takes the first of `PREFERRED` that is there and works.

    Raises:
        DeviceError: it is not there, or does not work.
    """
    if wanted == "auto":
        return next(device for device in map(torch.device, PREFERRED) if _hindrance(device) is None)
    device = torch.device(wanted)
    hindrance = _hindrance(device)
    if hindrance is not None:
        raise DeviceError(f"inference.device = {wanted!r}: {hindrance}")
    return device


def device_name(device: torch.device) -> str:
    """What a person calls it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def device_memory(device: torch.device) -> tuple[int, int] | None:
    """Bytes of the device's memory that are free, and all of them; None where it has none of its own."""
    return torch.cuda.mem_get_info(device) if device.type == "cuda" else None


def allocated_bytes(device: torch.device) -> int | None:
    """Bytes of the device's memory that tensors of this process take; None where it has none of its own."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else None


@contextmanager
def refused_when_full(what: str) -> Iterator[None]:
    """Turn a lack of the device's memory into a refusal of `what`. Raises `DeviceError`."""
    try:
        yield
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        raise DeviceError(
            f"{what}: the GPU's memory is full: end other sessions or programs on it, or use --device cpu",
            code="device-full",
        ) from None


def _hindrance(device: torch.device) -> str | None:
    """Why a device cannot be used, if so."""
    cure = "use --device cpu or auto"
    if device.type == "cpu":
        return None
    if device.type == "cuda":
        if torch.version.cuda is None and torch.version.hip is None:
            return f"PyTorch {torch.__version__} is built without CUDA: install its CUDA build, or {cure}"
        count = torch.cuda.device_count()
        if not count or not torch.cuda.is_available():
            return f"no CUDA device on this machine: see whether nvidia-smi lists one, or {cure}"
        if (device.index or 0) >= count:
            return f"there {'is 1 CUDA device' if count == 1 else f'are {count} CUDA devices'}, counted from 0"
    elif not torch.backends.mps.is_available():
        return f"no MPS device on this machine, which only Macs have: {cure}"
    return _failure(device)


def _failure(device: torch.device) -> str | None:
    """Why a device does not do what the networks ask of it, if so: an old GPU, or an old build of PyTorch."""
    try:
        picture = torch.ones(1, 1, 4, 4, device=device)
        positions = torch.full((1, 2, 2, 2), 2.0, device=device)
        sampled = F.grid_sample(
            F.conv2d(picture, picture[:, :, :3, :3], padding=1), positions, padding_mode="border", align_corners=False
        )
        sampled.sum().item()
    except RuntimeError as error:
        return f"it does not work: {str(error).splitlines()[0]}"
    return None
