"""The configuration: typed, frozen, read once and passed down.

Each section of the TOML file is one Struct below; `avatard.config_loader` reads files, environment and flags into them.
An empty string means "not set".
"""

import ipaddress
import re
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

Profile: TypeAlias = Literal["quality", "balanced", "low-latency"]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of the configuration file."""


class Stream(Section, frozen=True):
    """How audio becomes frames: latency against smoothness."""

    profile: Annotated[Profile, Meta(description="presets the other keys of this section; a key that is set wins")] = (
        "balanced"
    )
    clip_frames: Annotated[int, Meta(ge=2, le=128, description="S: frames denoised together")] = 16
    hop_frames: Annotated[int, Meta(ge=1, le=128, description="H: new frames per clip")] = 8
    fade_frames: Annotated[int, Meta(ge=0, le=64, description="X: frames cross-faded with the previous clip")] = 2
    lookahead_ms: Annotated[int, Meta(ge=0, le=1000, description="audio heard beyond the last new frame")] = 80
    motion_steps: Annotated[int, Meta(ge=1, le=1000, description="denoising steps of AToM-Net")] = 1
    video_steps: Annotated[int, Meta(ge=1, le=1000, description="denoising steps of MC-VDM")] = 1
    seed: Annotated[
        int, Meta(ge=0, lt=2**32, description="the same audio and seed give the same landmarks and frames")
    ] = 0

    def __post_init__(self) -> None:
        """Refuse a hop and fade that do not fit into a clip."""
        if self.hop_frames + self.fade_frames > self.clip_frames:
            raise ValueError(
                f"stream.hop_frames + stream.fade_frames = {self.hop_frames} + {self.fade_frames}: "
                f"expected at most stream.clip_frames = {self.clip_frames}"
            )


#: What each profile sets in [stream]. Live latency is (hop + fade) · 40 ms + look-ahead + compute.
PROFILES: dict[Profile, dict[str, int]] = {
    "quality": {
        "clip_frames": 16,
        "hop_frames": 8,
        "fade_frames": 4,
        "lookahead_ms": 160,
        "motion_steps": 4,
        "video_steps": 2,
    },
    "balanced": {
        "clip_frames": 16,
        "hop_frames": 8,
        "fade_frames": 2,
        "lookahead_ms": 80,
        "motion_steps": 1,
        "video_steps": 1,
    },
    "low-latency": {
        "clip_frames": 8,
        "hop_frames": 4,
        "fade_frames": 1,
        "lookahead_ms": 80,
        "motion_steps": 1,
        "video_steps": 1,
    },
}

Weights: TypeAlias = Annotated[str, Meta(min_length=1)]


class Speech(Section, frozen=True):
    """The speech encoder whose features AToM-Net reads."""

    encoder: Annotated[
        Literal["whisper", "hubert"], Meta(description="must be the one that AToM-Net was trained with")
    ] = "whisper"
    weights: Annotated[Weights, Meta(description="shipped name or file; for hubert, a folder or hub name")] = (
        "whisper_tiny_en_3"
    )


class Motion(Section, frozen=True):
    """AToM-Net: speech to landmarks."""

    weights: Annotated[Weights, Meta(description="shipped name or .safetensors file")] = "atom_nano"
    gain: Annotated[float, Meta(ge=0, le=3, description="scale of the mouth's motion; 1 is the network's own")] = 1.2
    noise: Annotated[float, Meta(ge=0, le=1, description="variation with the seed: 0 calm, 1 as trained")] = 0.0


class Video(Section, frozen=True):
    """MC-VDM: landmarks and the portrait to video."""

    weights: Annotated[Weights, Meta(description="shipped name or .safetensors file")] = "mcvdm_nano"
    mouth: Annotated[
        str, Meta(description="mouth painter: shipped name or .safetensors file; empty: the decoder's own paint")
    ] = "mouth_painter"


class Inference(Section, frozen=True):
    """Where the networks run, and in how many processes."""

    device: Annotated[
        str,
        Meta(
            pattern=r"^(auto|cpu|mps|cuda(:[0-9]{1,2})?)$",
            description="where the networks run: cpu, cuda (cuda:1 is the second), mps; auto: a GPU where there is one",
            extra={"allowed": "auto, cpu, mps, cuda or cuda:N"},
        ),
    ] = "auto"

    workers: Annotated[
        int,
        Meta(
            ge=0,
            le=64,
            description="processes that share the rooms, all started at once; 0: by cores, as rooms come",
        ),
    ] = 0


class Portrait(Section, frozen=True):
    """Which face is shown."""

    face: Annotated[
        int, Meta(ge=0, le=64, description="which face of the portrait, from the left; 0: there is only one")
    ] = 0
    more: Annotated[
        tuple[str, ...],
        Meta(description="more pictures or videos of the person: the mouth borrows their teeth"),
    ] = ()


#: Least and most pixels of a picture's longer side.
PICTURE_SIZES = (128, 1080)

FramingMode: TypeAlias = Literal["head", "photo", "face"]


class Picture(Section, frozen=True):
    """What part of the photograph is shown, how large and on what background."""

    framing: Annotated[
        FramingMode,
        Meta(description="head: head and shoulders; photo: the whole photograph; face: little more than it"),
    ] = "head"
    size: Annotated[
        int,
        Meta(
            ge=PICTURE_SIZES[0],
            le=PICTURE_SIZES[1],
            multiple_of=2,
            description="longer side in pixels; at most twice the photograph's own",
        ),
    ] = 512
    background: Annotated[
        str,
        Meta(
            min_length=1,
            description="behind the person: keep (the photograph's own), #RRGGBB, a picture file, or transparent",
        ),
    ] = "keep"


class Idle(Section, frozen=True):
    """Motion that does not come from speech."""

    motion: Annotated[float, Meta(ge=0, le=2, description="scale of head motion; 0 still, 1 natural")] = 1.0
    pose_video: Annotated[str, Meta(description="a video whose head pose drives the avatar's")] = ""
    half_rate: Annotated[
        Literal["rooms", "always", "never"],
        Meta(description="every second picture is left out while nobody speaks: in rooms, in all avatars, in none"),
    ] = "rooms"


class Audio(Section, frozen=True):
    """Local sources of speech, and buffering."""

    source: Annotated[str, Meta(description="'mic' or a sound file; not set: speech comes from clients only")] = ""
    buffer_seconds: Annotated[
        float, Meta(gt=0, le=600, description="most speech in the scheduler; each speaker queues 300 s more")
    ] = 30.0


class Server(Section, frozen=True):
    """The HTTP server: page, signalling, control and metrics."""

    host: Annotated[str, Meta(min_length=1, description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="TCP port; 0 picks a free one")] = 8080
    max_sessions: Annotated[
        int, Meta(ge=1, le=64, description="seats of clients that may talk (page, WHIP); more are answered 503")
    ] = 1
    max_connections: Annotated[
        int, Meta(ge=16, le=65_536, description="HTTP connections; beyond that idle ones are closed, then 503")
    ] = 256
    token: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9._~+/-]*=*$",  # RFC 6750: nothing else passes an Authorization header
            description="bearer token that clients must send; not set: none",
            extra={"secret": True, "allowed": "letters, digits and -._~+/"},
        ),
    ] = ""
    max_rooms: Annotated[
        int, Meta(ge=0, le=10_000, description="rooms beside the default one, if the machine has room for them")
    ] = 64
    room_idle_seconds: Annotated[
        float, Meta(ge=0, le=86_400, description="a room without clients and speech ends after so long; 0: never")
    ] = 120.0
    room_quiet_share: Annotated[
        float, Meta(gt=0, le=1, description="part of its full load that a room counts for while it does not speak")
    ] = 0.25
    data_dir: Annotated[
        str, Meta(description="folder that keeps uploaded identities; not set: until the daemon ends")
    ] = ""
    tls_certificate_file: Annotated[str, Meta(description="PEM file; with tls_key_file: HTTPS")] = ""
    tls_key_file: Annotated[str, Meta(description="PEM file")] = ""

    def __post_init__(self) -> None:
        """Refuse half of a TLS pair."""
        if bool(self.tls_certificate_file) != bool(self.tls_key_file):
            missing = "tls_key_file" if self.tls_certificate_file else "tls_certificate_file"
            raise ValueError(f"server.{missing} is not set: expected both the TLS certificate and its key, or neither")


#: RFC 7064 and 7065, as far as aiortc reads them: no IPv6 addresses.
ICE_URL = re.compile(r"(stuns?:(?!.*[?])|turns?:)[\w.-]+(:(?P<port>[0-9]{1,5}))?([?]transport=(udp|tcp))?")


class Webrtc(Section, frozen=True):
    """WebRTC media and connectivity."""

    codec: Annotated[
        Literal["vp8", "h264"], Meta(description="video codec of viewers that decode both; others get theirs")
    ] = "vp8"
    bitrate_kbps: Annotated[
        int,
        Meta(ge=50, le=20_000, description="video bit rate up to 512x512; larger ones get more, narrow networks less"),
    ] = 1500
    max_viewers: Annotated[int, Meta(ge=0, le=1024, description="WHEP viewers; more are answered 503")] = 64
    ice_servers: Annotated[
        tuple[str, ...], Meta(description="stun:, turn: and turns: URLs; the first of each is used")
    ] = ()
    ice_username: Annotated[str, Meta(description="of the TURN server")] = ""
    ice_credential: Annotated[str, Meta(description="of the TURN server", extra={"secret": True})] = ""
    udp_ports: Annotated[
        str,
        Meta(
            pattern=r"^([0-9]{4,5}-[0-9]{4,5})?$",
            description="UDP ports of media, such as 40000-40100: one for each client, then 503; not set: any",
            extra={"allowed": "FIRST-LAST, from 1024 to 65535"},
        ),
    ] = ""
    announce: Annotated[
        tuple[str, ...],
        Meta(description="IP addresses that clients are told instead of this machine's own: of the NAT, of the host"),
    ] = ()

    @property
    def udp_port_range(self) -> range:
        """`udp_ports` as numbers; empty where it is not set."""
        first, _, last = self.udp_ports.partition("-")
        return range(int(first), int(last) + 1) if last else range(0)

    def __post_init__(self) -> None:
        """Refuse servers, ports and addresses that no connection could use."""
        ports = self.udp_port_range
        if self.udp_ports and not (ports and 1024 <= ports[0] and ports[-1] <= 65535):
            raise ValueError(f"webrtc.udp_ports = {self.udp_ports}: expected FIRST-LAST, from 1024 to 65535")
        for address in self.announce:
            try:
                usable = not ipaddress.ip_address(address).is_unspecified
            except ValueError:
                usable = False
            if not usable:
                raise ValueError(f"webrtc.announce: got {address}, expected IP addresses of this machine or its NAT")
        for name in ("ice_username", "ice_credential"):  # they are announced in a header
            if re.search(r"[\x00-\x1f\x7f]", getattr(self, name)):
                raise ValueError(f"webrtc.{name}: expected no control characters")
        for url in self.ice_servers:
            found = ICE_URL.fullmatch(url)
            if found is None or int(found["port"] or 1) not in range(1, 65536):
                raise ValueError(
                    f"webrtc.ice_servers: got {url}, expected stun:HOST[:PORT], turn:HOST[:PORT] or turns:HOST[:PORT]"
                )


class Zmq(Section, frozen=True):
    """ZeroMQ: frames, landmarks and sound out; audio in."""

    publish: Annotated[str, Meta(description="endpoint of the publisher; not set: no publisher")] = ""
    audio: Annotated[str, Meta(description="endpoint of the speech input; not set: no input")] = ""
    single_part: Annotated[bool, Meta(description="send topic and payload in one part, for ZMQ_CONFLATE")] = False
    video_encoding: Annotated[
        Literal["jpeg", "png", "rgb24"],
        Meta(description="of the video topic; with a transparent background all but png become rgba32"),
    ] = "jpeg"
    jpeg_quality: Annotated[int, Meta(ge=1, le=100, description="of the video topic")] = 85
    send_queue_messages: Annotated[int, Meta(ge=1, le=1000, description="messages kept for a slow subscriber")] = 32
    secret_key_file: Annotated[str, Meta(description="CURVE key of the server; required beyond loopback")] = ""
    allowed_clients_file: Annotated[str, Meta(description="CURVE public keys, one per line; not set: any client")] = ""


class Output(Section, frozen=True):
    """Where else the avatar goes: live platforms, files, a virtual camera, a sound device, MJPEG."""

    push: Annotated[
        tuple[str, ...],
        Meta(
            description="rtmp://, srt:// and rtsp:// addresses, each with its stream key; H.264 and AAC",
            extra={"secret": True, "allowed": "a list of addresses"},
        ),
    ] = ()
    push_kbps: Annotated[int, Meta(ge=100, le=50_000, description="video bit rate of a push")] = 2500
    push_hosts: Annotated[
        tuple[str, ...], Meta(description="hosts that POST /api/outputs may push to; *: any; not set: none")
    ] = ()
    record: Annotated[
        str, Meta(description="a file: .mp4, .mkv or .webm; one that exists is kept, NAME-2 is written instead")
    ] = ""
    record_directory: Annotated[
        str, Meta(description="the folder in which POST /api/outputs may record; not set: none")
    ] = ""
    badge: Annotated[bool, Meta(description='write "AI-generated" into every picture of this section')] = False
    camera: Annotated[str, Meta(description="virtual camera: auto, or its device; needs avatard[camera]")] = ""
    sound: Annotated[str, Meta(description="sound output: default, or the name of a device of this machine")] = ""
    mjpeg_viewers: Annotated[int, Meta(ge=0, le=64, description="viewers of /mjpeg; more are answered 503")] = 4
    mjpeg_fps: Annotated[int, Meta(ge=1, le=25, description="most pictures a second of /mjpeg")] = 12


class Arkit(Section, frozen=True):
    """ARKit's coefficients, which ZeroMQ and [engines] send."""

    gain: Annotated[
        float, Meta(ge=0, le=3, description="scale of the coefficients, up to 1; gaze and blinks stay as they are")
    ] = 1.0


class Engines(Section, frozen=True):
    """The face over UDP, to programs that know trackers. Receivers are HOST or HOST:PORT."""

    vmc: Annotated[tuple[str, ...], Meta(description="VMC receivers (VSeeFace, Warudo, EVMC4U), port 39539")] = ()
    vmc_names: Annotated[
        Literal["vrm0", "vrm1", "arkit"],
        Meta(description="blend shapes of VMC: VRM's presets, or ARKit's (Perfect Sync)"),
    ] = "vrm0"
    livelink: Annotated[
        tuple[str, ...], Meta(description="receivers of Live Link Face (Unreal Engine), port 11111")
    ] = ()
    livelink_subject: Annotated[
        str, Meta(min_length=1, max_length=64, description="what Unreal's list of subjects calls the avatar")
    ] = "avatard"
    openseeface: Annotated[
        tuple[str, ...], Meta(description="receivers of OpenSeeFace (VSeeFace, VTube Studio), port 11573")
    ] = ()


#: A voice by its name, which is never an option or a path of a program.
VOICE = r"^([A-Za-z0-9][\w+.()-]{0,99})?$"


class Tts(Section, frozen=True):
    """Text to speech, for `POST /api/say` and the page's text box: a program of this machine, or an endpoint."""

    engine: Annotated[
        str,
        Meta(
            pattern=r"^(espeak-ng|flite|piper:.+)?$",
            description="program that speaks texts: espeak-ng, flite or piper:MODEL.onnx; not set: none",
            extra={"allowed": "espeak-ng, flite or piper:MODEL.onnx"},
        ),
    ] = ""
    url: Annotated[
        str,
        Meta(
            pattern=r"^(https?://[^\s]+)?$",
            description="OpenAI-compatible endpoint instead: its server's root, or all of .../v1/audio/speech",
            extra={"allowed": "an http:// or https:// URL"},
        ),
    ] = ""
    key: Annotated[
        str,
        Meta(
            pattern=r"^[!-~]*$",
            description="bearer token of the endpoint; set AVATARD_TTS__KEY",
            extra={"secret": True, "allowed": "printable ASCII without spaces"},
        ),
    ] = ""
    model: Annotated[str, Meta(description="the endpoint's name of the model")] = "tts-1"
    voice: Annotated[
        str,
        Meta(
            pattern=VOICE,
            description="the voice unless a request names one; not set: the program's own, alloy of an endpoint",
            extra={"allowed": "a name of letters, digits and _+.()-"},
        ),
    ] = ""
    sample_rate_hz: Annotated[int, Meta(ge=8_000, le=192_000, description="of the endpoint's PCM")] = 24_000
    max_characters: Annotated[int, Meta(ge=1, le=20_000, description="longest text of one request")] = 2_000

    def __post_init__(self) -> None:
        """Refuse two of them."""
        if self.engine and self.url:
            raise ValueError("tts.engine and tts.url are both set: expected one of them")


class Log(Section, frozen=True):
    """Logging, to standard error."""

    level: Annotated[Literal["debug", "info", "warning", "error"], Meta(description="lowest level to log")] = "info"
    format: Annotated[Literal["human", "json"], Meta(description="one line per event in both")] = "human"


class Config(Section, frozen=True):
    """The whole configuration."""

    stream: Stream = Stream()
    speech: Speech = Speech()
    motion: Motion = Motion()
    video: Video = Video()
    inference: Inference = Inference()
    portrait: Portrait = Portrait()
    picture: Picture = Picture()
    idle: Idle = Idle()
    audio: Audio = Audio()
    server: Server = Server()
    webrtc: Webrtc = Webrtc()
    zmq: Zmq = Zmq()
    output: Output = Output()
    arkit: Arkit = Arkit()
    engines: Engines = Engines()
    tts: Tts = Tts()
    log: Log = Log()
