"""The number format that networks compute in on a device.

On a processor, bfloat16 is two to four times as fast as float32 where it is multiplied in hardware (AVX-512 BF16, AMX),
and eight times as slow where it has to be emulated (AVX2: 147 instead of 17 ms for a convolution of 64 channels,
measured on a Zen 3). CUDA devices without bfloat16 (before compute capability 8.0) multiply float16. No activation of
the shipped networks comes near its end at 65,504: the largest was 83, of a portrait that spoke.
"""

from __future__ import annotations

import torch
from torch import nn

from avatard.models.device import CPU


def has_native_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 numbers itself."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def inference_dtype(device: torch.device = CPU) -> torch.dtype:
    """The format that convolutions and matrix products of MC-VDM and the mouth painter run in.

    MPS computes in float32: no narrower format was tried there.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if device.type == "cpu" and has_native_bfloat16() else torch.float32


def inference_autocast(device: torch.device = CPU) -> torch.autocast:
    """The context that networks run in on a device: `inference_dtype`."""
    dtype = inference_dtype(device)
    narrow = dtype != torch.float32
    return torch.autocast(device.type, dtype if narrow else torch.bfloat16, enabled=narrow)


def narrowed(network: nn.Module, device: torch.device = CPU) -> None:
    """Keep the weights that `inference_autocast` would narrow at each call in its format.

    What comes out is the same, sooner. The network runs under `inference_autocast` only from then on.
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.to(inference_dtype(device))
