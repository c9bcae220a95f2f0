"""Where a training runs: one process on one device, or what `accelerate launch` started."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from avatard.models.device import choose_device
from avatard.models.precision import inference_dtype


class Processes(Protocol):
    """What the training loop uses of accelerate's `Accelerator`."""

    device: torch.device
    num_processes: int
    process_index: int
    is_main_process: bool

    def prepare(self, *objects: Any) -> Any:
        """The objective and the optimiser, made ready."""

    def backward(self, loss: Tensor) -> None:
        """Gradients."""

    def clip_grad_norm_(self, parameters: Any, max_norm: float) -> Tensor:
        """Limit the gradients' norm; the norm before that."""

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        """The sum or mean over all processes."""

    def wait_for_everyone(self) -> None:
        """Return when all processes are here."""

    def end_training(self) -> None:
        """Let go of the other processes."""


class SingleProcess:
    """One process on one device, for machines without accelerate."""

    num_processes, process_index, is_main_process = 1, 0, True

    def __init__(self, device: torch.device, precision: Literal["no", "bf16"]):
        self.device, self._narrow = device, precision == "bf16"

    def prepare(self, *objects: Any) -> Any:
        """The objective under autocast; everything else as it is."""
        return tuple(self._wrapped(thing) if isinstance(thing, nn.Module) else thing for thing in objects)

    def _wrapped(self, objective: nn.Module) -> Any:
        objective.to(self.device)

        def call(*arguments: Any) -> Any:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self._narrow):
                return objective(*arguments)

        return call

    def backward(self, loss: Tensor) -> None:
        """Gradients."""
        loss.backward()  # type: ignore[no-untyped-call]

    def clip_grad_norm_(self, parameters: Any, max_norm: float) -> Tensor:
        """Limit the gradients' norm; the norm before that."""
        return nn.utils.clip_grad_norm_(parameters, max_norm)

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        """Over one process nothing changes."""
        return tensor

    def wait_for_everyone(self) -> None:
        """There is nobody else."""

    def end_training(self) -> None:
        """There is nobody else."""


def start(precision: Literal["no", "bf16"], device: str = "auto") -> Processes:
    """Processes on a device: `auto` is the GPU where there is one, else the CPU.

    bfloat16 is taken only where it is multiplied in hardware: emulated it is ten times as slow as float32.

    Raises:
        DeviceError: there is no such device.
    """
    chosen = choose_device(device)
    if inference_dtype(chosen) != torch.bfloat16:
        precision = "no"
    try:
        from accelerate import Accelerator
    except ImportError:
        return SingleProcess(chosen, precision)
    accelerator: Processes = Accelerator(mixed_precision=precision, cpu=chosen.type == "cpu")
    return accelerator
