"""`avatard doctor`: check this machine and this installation, one line per check."""

import os
import platform
import socket
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, NamedTuple

from avatard.config import Config, Output, Tts, Zmq
from avatard.errors import UserError
from avatard.inference.pool import cores

#: `missing`: `serve` needs it. `note`: only an option needs it, or only speed suffers.
State = Literal["ok", "note", "missing"]


class Check(NamedTuple):
    """One line of the table."""

    what: str
    state: State
    found: str


def examine(config: Config) -> Iterator[Check]:
    """Run every check that concerns `serve` with this configuration."""
    yield _python()
    yield from _cpu()
    yield from _torch(config.inference.device)
    live = bool(config.output.push or config.output.record)
    yield from _codecs("h264" if live else config.webrtc.codec)
    yield _portaudio(needed=config.audio.source == "mic")
    yield _port("HTTP port", config.server.host, config.server.port)
    yield from _zeromq(config.zmq)
    yield from _outputs(config.output)
    yield from _tts(config.tts)
    yield from _weights(config)


def table(checks: Iterable[Check]) -> str:
    """The checks in aligned columns."""
    rows = list(checks)
    width = max(len(row.what) for row in rows)
    return "\n".join(f"{row.state:<7}  {row.what:<{width}}  {row.found}" for row in rows)


def _python() -> Check:
    return Check("Python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _cpu() -> Iterator[Check]:
    count = cores()
    few = count < 2
    yield Check("CPU cores", "note" if few else "ok", f"{count}" + ("; real time needs 2" if few else ""))
    info = Path("/proc/cpuinfo")
    if not info.exists():
        yield Check("CPU features", "note", "unknown on this system")
        return
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
    # x86 says "flags", Arm says "Features"; all cores are assumed to be equal.
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "bf16")
    found = [flag for flag in wanted if flag in flags]
    fast = any("bf16" in flag for flag in found)
    slow = "" if fast else "; no bf16 arithmetic: the networks run in float32, slower"
    yield Check("CPU features", "ok" if fast else "note", (", ".join(found) or "none that help") + slow)


def _torch(device: str) -> Iterator[Check]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Check("torch", "missing", f"{_first_line(error)}: reinstall avatard")
        return
    yield Check("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")
    from avatard.models.device import choose_device, device_memory, device_name
    from avatard.models.precision import inference_dtype

    try:
        chosen = choose_device(device)
    except UserError as error:
        yield Check("device", "missing", str(error))
        return
    precision = f"networks in {str(inference_dtype(chosen)).removeprefix('torch.')}"
    memory = device_memory(chosen)
    room = f", {memory[0] / 1e9:.1f} of {memory[1] / 1e9:.1f} GB free" if memory is not None else ""
    model = "" if chosen.type == "cpu" else f" ({device_name(chosen)})"
    yield Check("device", "ok", f"{chosen}{model}{room}, {precision}")


def _codecs(codec: str) -> Iterator[Check]:
    try:
        import av
        from av.codec.codec import UnknownCodecError

        present = []
        for name in ("libvpx", "libx264", "libopus"):
            try:
                av.Codec(name, "w")
                present.append(name)
            except UnknownCodecError:
                continue
    except (ImportError, OSError) as error:
        yield Check("codecs", "missing", f"PyAV: {_first_line(error)}: reinstall avatard")
        return
    encoder = {"vp8": "libvpx", "h264": "libx264"}[codec]
    lacking = [name for name in (encoder, "libopus") if name not in present]
    cure = f"; without {' and '.join(lacking)}: reinstall PyAV from its wheel" if lacking else ""
    yield Check("codecs", "missing" if lacking else "ok", f"PyAV {av.__version__} with {', '.join(present)}{cure}")
    for package in ("aiortc", "pyzmq", "soxr", "ai-edge-litert"):
        try:
            yield Check(package, "ok", version(package))
        except PackageNotFoundError:
            yield Check(package, "missing", "not installed: reinstall avatard")


def _portaudio(needed: bool) -> Check:
    lacking: State = "missing" if needed else "note"
    try:
        import sounddevice
    except (ImportError, OSError) as error:
        return Check(
            "PortAudio", lacking, f"{_first_line(error)}; only the local microphone needs it: install libportaudio2"
        )
    microphones = sum(device["max_input_channels"] > 0 for device in sounddevice.query_devices())
    if not microphones:
        return Check("PortAudio", lacking, "no microphone: connect one, or use the browser's through the page")
    return Check("PortAudio", "ok", f"{microphones} microphones")


def _port(what: str, host: str, port: int) -> Check:
    if port == 0:
        return Check(what, "ok", "0: a free one is picked")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            None if host == "*" else host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as listener:
            if os.name == "posix":
                # As the server does: a port is free as soon as its last connection is closed.
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a valid host name"
        return Check(what, "missing", f"{host}:{port}: {reason}: choose another")
    return Check(what, "ok", f"{host}:{port} is free")


def _zeromq(config: Zmq) -> Iterator[Check]:
    from avatard.gateways.zeromq import checked_keys
    from avatard.protocols.curve import KeysError
    from avatard.protocols.endpoint import EndpointError

    try:
        checked_keys(config)
    except (EndpointError, KeysError) as error:
        yield Check("ZeroMQ", "missing", str(error))
        return
    for name, endpoint in (("ZeroMQ publisher", config.publish), ("ZeroMQ audio in", config.audio)):
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        if endpoint.startswith("tcp://") and port.isdecimal():
            yield _port(name, host.strip("[]"), int(port))


def _outputs(config: Output) -> Iterator[Check]:
    """What the section `output` asks for; the receivers of pushes are not asked."""
    from avatard.gateways.loudspeaker import check_loudspeaker
    from avatard.gateways.virtual_camera import check_camera
    from avatard.media.live_writer import target_of

    for text in filter(None, (*config.push, config.record)):
        yield _asked("output", lambda text: target_of(text).shown, text)
    if config.camera:
        yield _asked("virtual camera", check_camera, config.camera)
    if config.sound:
        yield _asked("sound output", check_loudspeaker, config.sound)


def _asked(what: str, check: Callable[[str], str | None], setting: str) -> Check:
    try:
        return Check(what, "ok", check(setting) or setting)
    except UserError as error:
        return Check(what, "missing", str(error))


def _tts(config: Tts) -> Iterator[Check]:
    from avatard.tts.configured import configured_synthesizer

    setting = config.engine or config.url
    if setting:
        yield _asked("text to speech", lambda name: name if configured_synthesizer(config) else None, setting)


def _weights(config: Config) -> Iterator[Check]:
    from avatard.models.checkpoint import CheckpointError, locate, shipped, verified

    try:
        names = sorted(shipped())
    except CheckpointError as error:
        yield Check("weights", "missing", str(error))
        return
    for name in names:
        try:
            yield Check("shipped weights", "ok", f"{name}, {verified(name).stat().st_size / 1e6:.1f} MB, intact")
        except CheckpointError as error:
            yield Check("shipped weights", "missing", str(error))
    configured = {"motion.weights": config.motion.weights, "video.weights": config.video.weights}
    if config.speech.encoder == "whisper":
        # HuBERT comes from a folder or the hub, which transformers looks up itself.
        configured["speech.weights"] = config.speech.weights
    for key, value in configured.items():
        try:
            yield Check(key, "ok", locate(value).name)
        except CheckpointError as error:
            yield Check(key, "missing", str(error))


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
