"""The command line. Each verb is one function that imports what it runs when it runs, so that `--help` is instant.

A verb takes `ConfigOption`, `SetOption`, `LogLevelOption` and `LogFormatOption`, calls `configure` with its own flags
under the keys that they set, and passes the frozen configuration on. Mistakes of the user are `UserError`s.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avatard import __version__, config_loader
from avatard.config import Config
from avatard.config_loader import Settings
from avatard.errors import UserError
from avatard.log import setup
from avatard.timebase import FPS

if TYPE_CHECKING:
    from avatard.inference.engine_api import Engine

app = typer.Typer(
    help="One portrait and a live voice in, a live talking head out.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

#: Eileen Collins, NASA: public domain.
EXAMPLE_PORTRAIT = Path(__file__).parent / "media" / "astronaut.jpg"

bench_app = typer.Typer(help="Measure this machine.", invoke_without_command=True)
app.add_typer(bench_app, name="bench")


def _writable(path: Path | None) -> Path | None:
    """Refuse a path that cannot be written now, not after minutes of work."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise typer.BadParameter(f"{path} cannot be written: it is a folder, or its folder does not exist")
    return path


ConfigOption = Annotated[
    str,
    typer.Option(
        "--config", metavar="FILE|NAME", help="A TOML file, or the name of a shipped configuration: nano, paper."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Set a configuration key; may be repeated."),
]
MoreOption = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE", help="Another picture or short video of the person that shows teeth; may be repeated."
    ),
]
FaceOption = Annotated[int | None, typer.Option(min=1, help="Which face, if there are several: 1 is the leftmost.")]
ProfileOption = Annotated[
    str | None, typer.Option(metavar="quality|balanced|low-latency", help="Trade smoothness for latency.")
]
JsonOption = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", callback=_writable, help="Write the figures to this file.")
]
LogLevelOption = Annotated[str | None, typer.Option(metavar="debug|info|warning|error", help="Lowest level to log.")]
LogFormatOption = Annotated[
    str | None, typer.Option(metavar="human|json", help="Log format; one line per event in both.")
]


def configure(config: str, overrides: list[str] | None, flags: Mapping[str, object]) -> Settings:
    """Read the configuration and start logging as it says.

    Args:
        config: the value of `--config`.
        overrides: the values of `--set`.
        flags: the verb's own flags by the key they set; `None`: not given.

    Raises:
        ConfigError: see `config_loader.load`.
    """
    effective = config_loader.load(config, overrides or (), flags, os.environ)
    setup(effective.config.log, effective.secrets)
    return effective


@contextmanager
def report_user_errors(code: int = 1) -> Iterator[None]:
    """Print a `UserError` as one line and exit with `code`."""
    try:
        yield
    except UserError as error:
        print(f"avatard: {error}", file=sys.stderr)
        raise SystemExit(code) from None


def _version(asked: bool) -> None:
    if asked:
        print(f"avatard {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of `avatard` itself."""


@app.command("config")
def config_verb(
    config: ConfigOption = "nano",
    set_: SetOption = None,
) -> None:
    """Print the effective configuration and its sources.

    The output is a TOML file that gives the same configuration again; secrets are left out.
    """
    for line in config_loader.load(config, set_ or (), environ=os.environ).toml():
        print(line)


@app.command()
def doctor(
    config: ConfigOption = "nano",
    set_: SetOption = None,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
) -> None:
    """Check this machine and this installation.

    The exit code is 1 if something that `serve` needs is missing.
    """
    effective = configure(config, set_, {"log.level": log_level, "log.format": log_format})
    from avatard.commands.doctor import examine, table

    checks = list(examine(effective.config))
    print(table(checks))
    raise typer.Exit(any(check.state == "missing" for check in checks))


@app.command()
def serve(
    identity: Annotated[Path, typer.Option(help="The portrait: one upright face, seen from the front.")],
    face: FaceOption = None,
    more: MoreOption = None,
    profile: ProfileOption = None,
    audio: Annotated[
        str | None, typer.Option(metavar="FILE|mic", help="Speak a sound file, or a local microphone.")
    ] = None,
    pose_video: Annotated[
        str | None, typer.Option(metavar="FILE", help="A video whose head pose drives the avatar's.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; by default, this machine only.")] = None,
    port: Annotated[int | None, typer.Option(help="TCP port; 0 picks a free one.")] = None,
    max_sessions: Annotated[int | None, typer.Option(help="How many clients may talk at once; others get 503.")] = None,
    max_rooms: Annotated[
        int | None,
        typer.Option(help="How many rooms there may be beside this avatar, if the machine can take them."),
    ] = None,
    room_idle_seconds: Annotated[
        float | None, typer.Option(help="A room without clients and speech ends after so long; 0: never.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Keep uploaded identities here; by default until the end.")
    ] = None,
    token: Annotated[str | None, typer.Option(help="Bearer token that clients must send.")] = None,
    tls_certificate: Annotated[
        str | None, typer.Option(metavar="FILE", help="PEM file; with --tls-key: HTTPS.")
    ] = None,
    tls_key: Annotated[str | None, typer.Option(metavar="FILE", help="PEM file.")] = None,
    codec: Annotated[str | None, typer.Option(metavar="vp8|h264", help="Video codec of WebRTC.")] = None,
    bitrate: Annotated[int | None, typer.Option(metavar="KBPS", help="Video bit rate of WebRTC.")] = None,
    ice_servers: Annotated[
        str | None, typer.Option(metavar="URL,...", help="stun: and turn: servers; the first of each is used.")
    ] = None,
    zmq: Annotated[
        str | None, typer.Option(metavar="ENDPOINT", help="Publish over ZeroMQ, e.g. tcp://127.0.0.1:5556.")
    ] = None,
    zmq_audio: Annotated[
        str | None, typer.Option(metavar="ENDPOINT", help="Accept speech over ZeroMQ, e.g. tcp://127.0.0.1:5557.")
    ] = None,
    zmq_single_part: Annotated[
        bool | None, typer.Option("--zmq-single-part", help="Send topic and payload in one part, for ZMQ_CONFLATE.")
    ] = None,
    push: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Stream to rtmp://HOST/APP/KEY, srt:// or rtsp://; may be repeated."),
    ] = None,
    record: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Record to .mp4, .mkv or .webm; playable if avatard is killed.")
    ] = None,
    virtual_camera: Annotated[
        str | None, typer.Option(metavar="auto|DEVICE", help="Be a camera of this machine; needs avatard[camera].")
    ] = None,
    play_sound: Annotated[
        str | None, typer.Option(metavar="default|DEVICE", help="Play the voice on a sound output of this machine.")
    ] = None,
    vmc: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST[:39539]", help="Send the face by VMC (VSeeFace, EVMC4U); may be repeated."),
    ] = None,
    vmc_names: Annotated[
        str | None, typer.Option(metavar="vrm0|vrm1|arkit", help="Blend shapes of VMC; arkit is Perfect Sync.")
    ] = None,
    livelink: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST[:11111]", help="Send the face as Live Link Face (Unreal); may be repeated."),
    ] = None,
    openseeface: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST[:11573]", help="Send the face as OpenSeeFace (VTube Studio); may be repeated."),
    ] = None,
    tts: Annotated[
        str | None,
        typer.Option(
            metavar="espeak-ng|flite|piper:MODEL", help="Speak texts by this program: /api/say, the page's box."
        ),
    ] = None,
    tts_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Speak texts by an OpenAI-compatible endpoint; its key is AVATARD_TTS__KEY's value."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same audio and seed give the same frames.")] = None,
    print_url: Annotated[bool, typer.Option("--print-url", help="Print the page's URL on standard output.")] = False,
    config: ConfigOption = "nano",
    set_: SetOption = None,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
) -> None:
    """Serve a live avatar: a page for people, WebRTC for viewers, ZeroMQ for engines.

    Speech comes from the page's microphone, WHIP (/whip), a WebSocket (/ws/audio, /ws/agent), ZeroMQ, or --audio; texts
    from the page and /api/say, with --tts. Video goes to the page (/), WHEP viewers (/whep, OBS among them), /mjpeg,
    ZeroMQ and a LiveKit room (/api/livekit); with --push to a live platform, with --record to a file, with
    --virtual-camera to the camera menu of other programs. By default, only this machine can connect. The face goes to
    VTuber programs and Unreal Engine with --vmc, --livelink and --openseeface. A stream key is better set as
    AVATARD_OUTPUT__PUSH: other users of the machine can read a command line.

    More avatars are rooms: POST /api/rooms makes one, with all of these routes below /rooms/ID and a token of its own.
    """
    flags = {
        "portrait.face": face,
        "portrait.more": [str(path) for path in more] if more else None,
        "stream.profile": profile,
        "audio.source": audio,
        "idle.pose_video": pose_video,
        "server.host": host,
        "server.port": port,
        "server.max_sessions": max_sessions,
        "server.max_rooms": max_rooms,
        "server.room_idle_seconds": room_idle_seconds,
        "server.data_dir": str(data_dir) if data_dir else None,
        "server.token": token,
        "server.tls_certificate_file": tls_certificate,
        "server.tls_key_file": tls_key,
        "webrtc.codec": codec,
        "webrtc.bitrate_kbps": bitrate,
        "webrtc.ice_servers": ice_servers,
        "zmq.publish": zmq,
        "zmq.audio": zmq_audio,
        "zmq.single_part": zmq_single_part,
        "output.push": push or None,
        "output.record": str(record) if record else None,
        "output.camera": virtual_camera,
        "output.sound": play_sound,
        "engines.vmc": vmc or None,
        "engines.vmc_names": vmc_names,
        "engines.livelink": livelink or None,
        "engines.openseeface": openseeface or None,
        "tts.engine": tts,
        "tts.url": tts_url,
        "stream.seed": seed,
        "log.level": log_level,
        "log.format": log_format,
    }
    effective = configure(config, set_, flags)
    from avatard.commands.serve import run

    with report_user_errors():
        run(effective.config, identity, print_url=print_url)


@app.command()
def inspect(
    picture: Annotated[Path, typer.Argument(help="The portrait.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the portrait with its points to this file.")
    ] = None,
    face: FaceOption = None,
) -> None:
    """Show what avatard sees in a portrait: size and pose of the face, and with -o its 68 points."""
    from avatard.commands.inspect import table, write_overlay
    from avatard.engine.identity import Identity

    with report_user_errors():
        identity = Identity.load(picture, face)
        if output is not None:
            write_overlay(identity, output)
    print(table(identity))
    if output is not None:
        print(f"avatard: wrote {output}", file=sys.stderr)


@app.command()
def render(
    identity: Annotated[Path, typer.Option(help="The portrait, or a video whose head pose is used too.")],
    audio: Annotated[Path, typer.Option(help="The speech: any file with sound in it.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write: .mp4, .webm or .mov.")],
    face: FaceOption = None,
    more: MoreOption = None,
    size: Annotated[int | None, typer.Option(help="Longer side of the pictures; picture.size by default.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps of the video network.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same inputs and seed give the same file.")] = None,
    badge: Annotated[bool, typer.Option("--badge", help='Write "AI-generated" into the corner.')] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Overwrite the file without asking.")] = False,
    config: ConfigOption = "nano",
    set_: SetOption = None,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
) -> None:
    """Render a portrait that speaks a sound file to a video file.

    The name's end chooses the kind: .mp4 is H.264, .webm VP9, .mov ProRes 4444. With --set
    picture.background=transparent, .webm and .mov have alpha.
    """
    flags = {
        "portrait.face": face,
        "portrait.more": [str(path) for path in more] if more else None,
        "stream.video_steps": steps,
        "stream.seed": seed,
        "log.level": log_level,
        "log.format": log_format,
    }
    effective = configure(config, set_, flags)
    from avatard.commands.render import render as render_file

    if output.exists() and not output.is_dir() and not force:
        if not sys.stdin.isatty():
            raise typer.BadParameter(f"{output} exists: give another name, or --force to overwrite it")
        typer.confirm(f"Overwrite {output}?", abort=True, err=True)
    # Clean up when a service manager stops it, as on Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with report_user_errors():
            frames = render_file(effective.config, _make_engine, identity, audio, output, size=size, badge=badge)
            print(
                f"avatard: wrote {output}: {frames / FPS:.1f} s, {output.stat().st_size / 1e6:.1f} MB", file=sys.stderr
            )
    except KeyboardInterrupt:
        print("avatard: stopped; nothing was written", file=sys.stderr)
        raise SystemExit(130) from None


def _make_engine(config: Config) -> "Engine":
    """Load the networks. PyTorch, which takes seconds, comes with them: after the inputs were checked."""
    from avatard.engine.engine import make_engine

    return make_engine(config)


def _write_json(path: Path | None, report: object) -> None:
    if path is not None:
        path.write_text(json.dumps(report, indent=2) + "\n")


@bench_app.callback()
def bench(
    context: typer.Context,
    identity: Annotated[Path, typer.Option(help="The portrait; an example without it.")] = EXAMPLE_PORTRAIT,
    face: FaceOption = None,
    seconds: Annotated[float, typer.Option(min=2, max=600, help="Length of the speech to measure with.")] = 10.0,
    profile: ProfileOption = None,
    json_file: JsonOption = None,
    config: ConfigOption = "nano",
    set_: SetOption = None,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
) -> None:
    """Measure what each stage of the pipeline costs on this machine, and whether it keeps up with speech."""
    if context.invoked_subcommand is not None:
        return
    flags = {
        "portrait.face": face,
        "stream.profile": profile,
        "log.level": log_level,
        "log.format": log_format,
    }
    effective = configure(config, set_, flags)
    from avatard.commands.bench import bench as measure
    from avatard.commands.bench import table

    with report_user_errors():
        from avatard.engine.engine import make_engine

        report = measure(effective.config, make_engine, identity, seconds)
        print(table(report))
        _write_json(json_file, report)


@bench_app.command("serve")
def bench_serve(
    identity: Annotated[Path, typer.Option(help="The portrait; an example without it.")] = EXAMPLE_PORTRAIT,
    audio: Annotated[Path | None, typer.Option(help="Speech to send; by default, a synthetic signal.")] = None,
    seconds: Annotated[float, typer.Option(min=5, max=3600, help="How long to speak.")] = 60.0,
    interrupts: Annotated[int, typer.Option(min=0, max=200, help="How many interrupts to measure after that.")] = 20,
    profile: ProfileOption = None,
    json_file: JsonOption = None,
    config: ConfigOption = "nano",
    set_: SetOption = None,
) -> None:
    """Measure a live session with a WebRTC client: latency, A/V skew, frame rate, interrupts, memory."""
    import asyncio

    flags = [f"--set={override}" for override in set_ or []] + ([f"--profile={profile}"] if profile else [])
    from avatard.commands.bench import voice
    from avatard.commands.bench_live import Report, daemon, measure, table
    from avatard.media.audio_file import read_speech

    async def run() -> Report:
        import numpy as np

        speech = np.concatenate(list(read_speech(audio))) if audio is not None else voice(60)
        async with daemon(["--identity", str(identity), "--config", config, *flags]) as (url, pid):
            return await measure(url, pid, speech, seconds, interrupts)

    with report_user_errors():
        report = asyncio.run(run())
        print(table(report))
        _write_json(json_file, report)


@app.command()
def keys(
    folder: Annotated[Path, typer.Argument(help="Folder to write them to.")] = Path("."),
    name: Annotated[str, typer.Option(help="Name of the two files.")] = "avatard",
) -> None:
    """Make a pair of CURVE keys for ZeroMQ.

    The secret file belongs to the server (`zmq.secret_key_file`); clients need the public key.
    """
    from avatard.protocols.curve import create_keys

    with report_user_errors():
        public_file, secret_file, public = create_keys(folder, name)
    print(f"{secret_file}  keep it secret: zmq.secret_key_file")
    print(f"{public_file}  give it to clients: {public}")


def main() -> None:
    """Run the command line; a mistake in the configuration exits with code 2, like a wrong option."""
    with report_user_errors(code=2):
        app(prog_name="avatard")
