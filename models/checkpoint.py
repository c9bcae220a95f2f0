"""Weights on disk: safetensors only, described by their own metadata, checked before they are used.

The weights that ship with avatard live in `weights/` beside this file, with their digests in `weights/SHA256SUMS`
(the format of `sha256sum`). A file in that folder that is not listed, or whose digest differs, is refused.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from avatard.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn

    Network = TypeVar("Network", bound=nn.Module)


class CheckpointError(UserError):
    """Weights are missing, damaged or not what they claim to be; the message is one line that names the cure."""


def weights_dir() -> Path:
    """The folder of the weights that ship with avatard."""
    return Path(__file__).resolve().parent / "weights"


def shipped() -> dict[str, str]:
    """File name to hexadecimal SHA-256 of every shipped file; empty when nothing ships.

    Raises:
        CheckpointError: when `SHA256SUMS` has a line that `sha256sum` would not write.
    """
    sums = weights_dir() / "SHA256SUMS"
    if not sums.exists():
        return {}
    digests = {}
    for number, line in enumerate(sums.read_text(encoding="utf-8").splitlines(), start=1):
        digest, _, name = line.partition("  ")
        if len(digest) != 64 or not name:
            raise CheckpointError(f"{sums}, line {number}: expected '<sha256>  <file>', got {line!r}")
        digests[name] = digest
    return digests


def verified(name: str) -> Path:
    """The path of a shipped file, after its digest was checked: for formats that are not ours, such as `.tflite`.

    Args:
        name: the file's name in `weights/`, with its suffix.

    Raises:
        CheckpointError: when it is missing, not listed, or its digest differs.
    """
    path = weights_dir() / name
    digests = shipped()
    if not path.is_file():
        if name in digests:
            raise CheckpointError(f"{path} is missing: reinstall avatard")
        raise CheckpointError(f"no weights {name!r} ship with avatard, only {_names(digests)}: give a path instead")
    if name not in digests:
        raise CheckpointError(
            f"{path} is not listed in SHA256SUMS: add its `sha256sum` line, or load it from elsewhere"
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != digests[name]:
        raise CheckpointError(f"{path} is damaged: sha256 {digest}, expected {digests[name]}: reinstall avatard")
    return path


def _names(digests: Mapping[str, str]) -> str:
    return ", ".join(sorted(name for name in digests if name.endswith(".safetensors"))) or "none"


def locate(name_or_path: str | Path) -> Path:
    """The file that `load` would read, checked if it is a shipped one.

    Args:
        name_or_path: the name of a shipped network, with or without `.safetensors`, or the path of a safetensors file.
            A string without a folder is a shipped name unless it ends in `.safetensors` and does not ship.

    Raises:
        CheckpointError: as `verified`, or when no file is there.
    """
    path = Path(name_or_path)
    if isinstance(name_or_path, str) and path.name == name_or_path:
        if path.suffix != ".safetensors":
            return verified(f"{name_or_path}.safetensors")
        if name_or_path in shipped():
            return verified(name_or_path)
    if not path.is_file():
        raise CheckpointError(f"no weights at {path}: give the path of a file, or what ships: {_names(shipped())}")
    if path.resolve().parent == weights_dir():
        return verified(path.name)
    return path


@overload
def load(name_or_path: str | Path) -> tuple[dict[str, "torch.Tensor"], dict[str, str]]: ...
@overload
def load(name_or_path: str | Path, framework: Literal["torch"]) -> tuple[dict[str, "torch.Tensor"], dict[str, str]]: ...
@overload
def load(name_or_path: str | Path, framework: Literal["numpy"]) -> tuple[dict[str, NDArray[Any]], dict[str, str]]: ...
def load(
    name_or_path: str | Path, framework: Literal["torch", "numpy"] = "torch"
) -> tuple[dict[str, Any], dict[str, str]]:
    """Read a network's tensors, on the CPU in the types they were saved in, and its metadata.

    The configuration that built the network is JSON in `metadata["config"]`.

    Args:
        name_or_path: see `locate`.
        framework: `"numpy"` gives arrays and does not import torch.

    Raises:
        CheckpointError: as `locate`, or when the file is not safetensors.
    """
    from safetensors import SafetensorError, safe_open

    path = locate(name_or_path)
    try:
        with safe_open(path, framework=framework) as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error


def build(name_or_path: str | Path, what: str, untrained: "Callable[[str], Network]", prefix: str = "") -> "Network":
    """The network of a file that describes itself, in float32, for inference.

    Args:
        name_or_path: see `locate`.
        what: the file should be, for the error.
        untrained: makes the network of the JSON in `metadata["config"]`.
        prefix: of the names of its weights; tensors without it are left out.

    Raises:
        CheckpointError: as `load`, or where configuration or weights are another network's.
    """
    tensors, metadata = load(name_or_path)
    try:
        network = untrained(metadata["config"])
        weights = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        network.load_state_dict({key: value.float() for key, value in weights.items()})
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{name_or_path}: not {what} ({reason})") from error
    return network.eval().requires_grad_(False)


def fill(network: "Network", path: str | Path) -> "Network":
    """Give a network that others defined the weights of a file, for asking only; what it has no place for is left out.

    Raises:
        CheckpointError: as `load`, or where weights are missing or have other shapes.
    """
    tensors, _ = load(path)
    wanted, name = network.state_dict(), type(network).__name__
    missing = [key for key in wanted if key not in tensors and not key.endswith("num_batches_tracked")]
    if missing:
        raise CheckpointError(f"{path} is not {name}: it lacks {len(missing)} weights, as {missing[0]}")
    try:
        network.load_state_dict({key: tensors[key].float() for key in wanted if key in tensors}, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{path} is not {name}: {' '.join(str(error).split())}") from error
    return network.eval().requires_grad_(False)


def save(
    path: str | Path, tensors: Mapping[str, "torch.Tensor"] | Mapping[str, NDArray[Any]], metadata: Mapping[str, str]
) -> None:
    """Write tensors and metadata as one safetensors file, whole or not at all.

    Args:
        path: the file; its folder must exist. A file that is there is replaced.
        tensors: name to torch tensor, on any device, or name to array; views and tied weights are written as they look.
        metadata: strings that describe the network; its configuration is JSON under `"config"`.
    """
    path = Path(path)
    # A training that is killed while it saves must leave the previous checkpoint readable.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if all(isinstance(tensor, np.ndarray) for tensor in tensors.values()):
            from safetensors.numpy import save_file as save_arrays

            save_arrays({key: np.ascontiguousarray(array) for key, array in tensors.items()}, temporary, dict(metadata))
        else:
            import torch
            from safetensors.torch import save_file

            # safetensors refuses tensors that share memory, so each is written as its own copy.
            copies = {
                key: torch.as_tensor(tensor).detach().cpu().contiguous().clone() for key, tensor in tensors.items()
            }
            save_file(copies, temporary, dict(metadata))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
