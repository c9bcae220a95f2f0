"""A device that is not the CPU, on a machine that has none: `meta`, whose tensors have shapes and no numbers."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, Final

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

META: Final = torch.device("meta")


class OneDevice(TorchDispatchMode):
    """Fails where an operation has tensors of two devices, as on a GPU; `meta` itself gives no numbers away."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        devices = {tensor.device for tensor in _tensors([*args, *kwargs.values()]) if tensor.ndim}
        assert len(devices) <= 1, f"{func} mixes devices"
        return func(*args, **kwargs)


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


@pytest.fixture
def without_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """`meta` has none."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
