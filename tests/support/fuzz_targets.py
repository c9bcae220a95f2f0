"""The parsers of bytes that come from outside, as targets of `tests.support.fuzzing`."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import wave
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import av
import cv2
import msgspec
import numpy as np
from aiohttp import WSMessage, WSMsgType, web
from aiortc.sdp import SessionDescription
from av.audio.stream import AudioStream
from PIL import Image

from avatard.config_loader import ConfigError, load
from avatard.frame import Sound
from avatard.gateways.agent import LiveAvatar
from avatard.gateways.livekit import _parse as parse_invitation
from avatard.gateways.output_routes import Request as OutputRequest
from avatard.gateways.say import _parse as parse_say
from avatard.gateways.signalling import _parse_candidate
from avatard.gateways.websocket import Agent, Dialect
from avatard.media.audio_file import AudioFileError, read_speech
from avatard.media.image_file import ImageError, read_cutout
from avatard.media.pcm import Encoding, PcmDecoder
from avatard.media.wav_stream import WavStream
from avatard.playout.utterance import Utterance
from avatard.protocols.json_text import parse_object
from avatard.protocols.messages import MessageError, Portrait, Speech, decode_request, encode
from avatard.protocols.offer import OfferError, negotiate, parse_fragment
from avatard.session.speaker import PushedSpeaker
from avatard.tts.sentences import sentences
from tests.support.fuzzing import NEXT, Target, gist
from tests.support.paths import ROOT

#: Before the samples of a binary message.
BINARY = b"\x02"

OFFER_WORDS = (
    "m=video 9 UDP/TLS/RTP/SAVPF 96\r\n", "m=audio 0 UDP/TLS/RTP/SAVPF 0\r\n", "m=application 9 UDP/DTLS/SCTP x\r\n",
    "a=mid:", "a=rtpmap:", "a=fmtp:", "a=extmap:1 x y\r\n", "a=group:BUNDLE ", "a=sendrecv\r\n", "a=inactive\r\n",
    "a=bundle-only\r\n", "a=candidate:1 1 udp 1 1.2.3.4 5 typ host\r\n", "a=ssrc:", "apt=", "profile-level-id=",
    "a=rtcp-fb:* nack\r\n", "a=fingerprint:sha-256 00\r\n", "a=setup:actpass\r\n", "a=simulcast:send 1;2\r\n", "a=rid:",
    "a=ice-ufrag:", "a=ice-pwd:", "a=end-of-candidates\r\n", ".local", "c=IN IP4 0.0.0.0\r\n", "a=sctp-port:",
)  # fmt: skip


class _Everything:
    """Turn-taking that gives the floor to everybody, and takes all they say."""

    attended, backlog_frames = True, 0.0

    def claim_floor(self, speaker: object, pushed: bool, loud: bool = True) -> bool:
        return True

    def release_floor(self, speaker: object) -> bool:
        return True

    async def next_frame(self) -> None:
        await asyncio.sleep(0)

    def queue(self, utterance: Utterance) -> None:
        utterance.id.encode()  # goes into messages

    def push(self, sound: Sound, utterance: Utterance) -> int:
        assert np.isfinite(sound.speech).all() and np.abs(sound.speech).max(initial=0) < 2
        return len(sound)

    def caption(self, utterance: Utterance, text: str) -> None:
        pass

    def finish(self, utterance: Utterance) -> None:
        pass

    def interrupt(self) -> object:
        return None

    def forget(self, speaker: object) -> None:
        pass


class _Conversation:
    """Messages of a WebSocket, in the dialect that it speaks."""

    def __init__(self, open_dialect: Callable[[PushedSpeaker], Dialect]) -> None:
        self._open = open_dialect
        self._speaker: PushedSpeaker | None = None

    def parse(self, data: bytes) -> str:
        self._speaker = PushedSpeaker(_Everything())
        dialect = self._open(self._speaker)
        list(dialect.greeting())
        outcome = ""
        for part in data.split(NEXT):
            if part.startswith(BINARY):
                message = WSMessage(WSMsgType.BINARY, part[1:], None)
            else:
                message = WSMessage(WSMsgType.TEXT, part.decode(errors="replace"), None)
            for answer in dialect.receive(message):
                text = json.dumps(answer, ensure_ascii=False)
                text.encode()
                said = str(answer.get("message", answer.get("data", {}).get("message", "")))
                assert len(text) < 2000 and len(said.splitlines()) < 2, "an answer that is longer than one line"
                outcome = f"{answer.get('type')} {gist(said)}"
        return outcome

    async def settle(self) -> None:
        """Let the speaker say what it was given."""
        speaker = self._speaker
        if speaker is not None:
            for _ in range(3):
                await asyncio.sleep(0)
            task = speaker._task
            if task.done() and not task.cancelled():
                task.result()
            await speaker.abort()


class _Idle:
    """A session in which nobody speaks."""

    speaking = False


def _parse_offer(data: bytes) -> str:
    text = data.decode()
    outcome = ""
    for send, receive in ((("vp8", "h264"), True), (("h264",), False), ((), True)):
        with suppress(OfferError) if outcome else nullcontext():
            served = negotiate(text, send, receive)  # type: ignore[arg-type]
            for candidate in served.candidates:
                served.place(candidate)
            with suppress(Exception):
                # A `Peer` refuses what aiortc cannot read; it must end, and without filling the memory.
                SessionDescription.parse(served.offer)
            served.answer(served.offer)
            served.restart_fragment("user", "password", [])
            outcome = f"{served.codec} {served.sends}"
    return outcome


def _parse_fragment(data: bytes) -> str:
    fragment = parse_fragment(data.decode())
    return f"{min(2, len(fragment.candidates))} {fragment.ended}"


def _parse_candidates(data: bytes) -> str:
    found = parse_object(data).get("candidates")
    if not isinstance(found, list):
        return "no list"
    return str({_parse_candidate(candidate) is None for candidate in found})


def _parse_request(data: bytes) -> str:
    request = decode_request(data)
    request.id.encode()
    if isinstance(request, Speech):
        assert np.abs(request.samples()).max() <= 1
    return type(request).__name__


def _parse_image(data: bytes) -> str:
    pixels, alpha = read_cutout(data, "the picture")
    assert pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8
    assert alpha is None or alpha.shape == pixels.shape[:2]
    return f"{alpha is None}"


class _SoundFile:
    """Files are read by their path."""

    def __init__(self, scratch: Path) -> None:
        self._path = scratch / "sound"

    def parse(self, data: bytes) -> str:
        self._path.write_bytes(data)
        samples = 0
        for chunk in read_speech(self._path):
            assert chunk.dtype == np.float32 and chunk.ndim == 1 and np.isfinite(chunk).all()
            samples += len(chunk)
        return "sound" if samples else "nothing"


def _parse_chunks(data: bytes) -> str:
    """Samples in messages: the first byte says which, the second how long the messages are."""
    if len(data) < 2:
        return "nothing"
    kind, step = data[0] % 4, 1 + data[1]
    rest, made = data[2:], 0
    stream: WavStream | PcmDecoder
    if kind == 3:
        stream = WavStream(16_000)
    else:
        encodings: tuple[Encoding, ...] = ("s16le", "f32le", "mulaw")
        stream = PcmDecoder(encodings[kind], 1 + data[0] // 128)
    for at in range(0, len(rest), step * 16):
        samples = stream.push(rest[at : at + step * 16])
        assert np.isfinite(samples).all() and np.abs(samples).max(initial=0) <= 1
        made += len(samples)
    return f"{kind} {made > 0}"


class _ConfigFile:
    def __init__(self, scratch: Path) -> None:
        self._path = scratch / "mine.toml"

    def parse(self, data: bytes) -> str:
        self._path.write_bytes(data)
        settings = load(self._path)
        "\n".join(settings.toml()).encode()
        return str(sorted({setting.source for setting in settings.settings.values()}))[:10]


def _parse_override(data: bytes) -> str:
    lines = data.decode().split("\n")
    environ = dict(line.partition("=")[::2] for line in lines[1::2])
    settings = load(overrides=lines[::2], environ={f"AVATARD_{name}": value for name, value in environ.items()})
    "\n".join(settings.toml()).encode()
    return "read"


def _parse_body(data: bytes) -> str:
    """Bodies of `/api/livekit`, `/api/say` and `/api/outputs`."""
    outcome = ""
    with suppress(web.HTTPBadRequest):
        outcome += parse_invitation(data).url[:3]
    with suppress(msgspec.DecodeError):
        msgspec.json.decode(data, type=OutputRequest)
        outcome += "output"
    ask = parse_say(data.decode(), 5000)
    assert all("\n" not in sentence and sentence.encode() for sentence in sentences(ask.text))
    return outcome + "say"


def _pictures() -> list[bytes]:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (24, 20, 3), np.uint8)
    found = [cv2.imencode(suffix, image)[1].tobytes() for suffix in (".jpg", ".png", ".bmp", ".tiff", ".ppm")]
    whole = Image.fromarray(image)
    for kind, options in (
        ("GIF", {}), ("WEBP", {}), ("AVIF", {}), ("PNG", {"dpi": (72, 72)}), ("TIFF", {"compression": "tiff_lzw"}),
        ("JPEG", {"exif": _turned().tobytes()}), ("WEBP", {"lossless": True}), ("JPEG", {"progressive": True}),
    ):  # fmt: skip
        for mode in ("RGB", "L", "RGBA", "P", "CMYK", "I;16", "1", "LA"):
            file = io.BytesIO()
            with suppress(OSError, ValueError, KeyError):
                whole.convert(mode if mode != "I;16" else "I").convert(mode).save(file, kind, **options)
                found.append(file.getvalue())
    return found


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def _sounds() -> list[bytes]:
    found = [_wav(16_000, 1, 2), _wav(44_100, 2, 2), _wav(8_000, 1, 1), _wav(192_000, 6, 4)]
    for kind, codec in (
        ("flac", "flac"),
        ("ogg", "libopus"),
        ("mp3", "libmp3lame"),
        ("mp4", "aac"),
        ("wav", "pcm_mulaw"),
    ):
        file = io.BytesIO()
        with suppress(av.FFmpegError, ValueError), av.open(file, "w", format=kind) as container:
            stream = container.add_stream(codec, rate=48_000 if codec == "libopus" else 16_000)
            assert isinstance(stream, AudioStream)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.int16), format="s16", layout="mono")
            frame.sample_rate = stream.codec_context.sample_rate
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        found.append(file.getvalue())
    return found


def _wav(rate_hz: int, channels: int, width: int) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(channels)
        writer.setsampwidth(width)
        writer.setframerate(rate_hz)
        writer.writeframes(bytes(range(256)) * channels * width)
    return file.getvalue()


def _messages(*parts: dict[str, Any] | bytes) -> bytes:
    return NEXT.join(BINARY + part if isinstance(part, bytes) else json.dumps(part).encode() for part in parts)


def targets(scratch: Path) -> dict[str, Target]:
    """All of them by name.

    Args:
        scratch: a folder for those that read files.
    """
    offers = [path.read_bytes() for path in sorted((ROOT / "tests" / "protocols" / "offers").glob("*.sdp"))]
    candidate = "candidate:1 1 udp 2130706431 192.168.1.7 50000 typ host generation 0"
    fragment = f"a=ice-ufrag:abcd\r\na=ice-pwd:{'p' * 22}\r\nm=audio 9 RTP/AVP 0\r\na=mid:0\r\na={candidate}\r\n"
    tone = (np.sin(np.arange(400)) * 9000).astype("<i2").tobytes()
    shipped = [path.read_bytes() for path in sorted((ROOT / "configs").glob("*.toml"))]
    speech = [
        encode(Speech(id="a", enc=enc, sr=16_000, ch=ch, data=tone)) for enc in ("pcm_s16le", "f32le") for ch in (1, 2)
    ]
    agent, live = _Conversation(Agent), _Conversation(lambda speaker: LiveAvatar(_Idle(), speaker))  # type: ignore[arg-type]
    refused = OfferError, UnicodeDecodeError
    found = (
        Target("offer", offers, _parse_offer, refused, OFFER_WORDS),
        Target(
            "fragment",
            [fragment.encode(), f"a={candidate}\r\na=end-of-candidates\r\n".encode()],
            _parse_fragment,
            refused,
            OFFER_WORDS,
        ),
        Target(
            "candidates",
            [
                _messages({"pc_id": "x", "candidates": [{"candidate": candidate, "sdpMid": "0", "sdpMLineIndex": 0}]}),
                _messages({"pc_id": "x", "candidates": [{"candidate": "", "sdp_mid": None}]}),
            ],
            _parse_candidates,
            (OfferError, ValueError),
            form="json",
        ),
        Target(
            "websocket",
            [
                _messages({"sample_rate": 24_000}, tone, {"type": "end_of_utterance"}),
                _messages({"sample_rate": 8000, "encoding": "mulaw", "channels": 2}, tone, {"type": "interrupt"}, tone),
                _messages({"sample_rate": 48_000, "encoding": "f32le"}, tone, {"type": "start_of_utterance"}),
                _messages(b"RIFF1234", {"type": "interrupt", "id": "x"}),
                _messages({"type": "start_of_utterance", "id": "a"}),
                _messages({"sample_rate": 16_000}),
            ],
            agent.parse,
            (),
            ('{"type": ', '"id": ', '"sample_rate": ', '"interrupt"', "RIFF", "\x1e", "\x02"),
            "json",
            agent.settle,
        ),
        Target(
            "liveavatar",
            [
                _messages(
                    {"type": "agent.speak", "event_id": "a", "audio": base64.b64encode(tone).decode()},
                    {"type": "agent.speak_end"},
                ),
                _messages({"type": "agent.interrupt", "event_id": "b"}, {"type": "agent.start_listening"}),
                _messages({"type": "session.keep_alive", "event_id": "c"}, {"type": "agent.stop_listening"}),
                _messages({"type": "agent.speak", "event_id": "a", "audio": "AAAA"}),
                _messages({"type": "session.keep_alive", "event_id": "c"}),
            ],
            live.parse,
            (),
            ('{"type": ', '"event_id": ', '"audio": ', '"agent.speak"', "\x1e", "\x02"),
            "json",
            live.settle,
        ),
        Target(
            "zeromq",
            [
                *speech,
                encode(Portrait(data=b"\x89PNG", face=1)),
                msgspec.msgpack.encode({"v": 1, "t": "interrupt", "id": "x"}),
                msgspec.msgpack.encode({"v": 1, "t": "end_of_utterance"}),
            ],
            _parse_request,
            (MessageError,),
            form="msgpack",
        ),
        Target("image", _pictures(), _parse_image, (ImageError,), ("Exif\0\0", "IHDR", "acTL", "iCCP", "ALPH")),
        Target("sound", _sounds(), _SoundFile(scratch).parse, (AudioFileError,), ("RIFF", "fmt ", "OggS", "moov")),
        Target(
            "chunks",
            [bytes([kind, 9]) + (_wav(16_000, 1, 2) if kind == 3 else tone) for kind in (0, 1, 2, 3, 128, 129, 130)],
            _parse_chunks,
            (ValueError,),
            ("RIFF", "WAVE", "fmt ", "data", "LIST", "OggS", "fLaC", "ID3"),
        ),
        Target(
            "config",
            [*shipped, b'[stream]\nprofile = "low-latency"\n[server]\nport = 1\n[video]\nsteps = 2\n'],
            _ConfigFile(scratch).parse,
            (ConfigError,),
            ("[stream]\n", "[server]\n", "port = ", "a.b.c = 1", "[[a]]", "{a = ", "[", "1979-05-27", "inf", "nan"),
        ),
        Target(
            "override",
            [b"server.port=1\nSERVER__HOST=::1\nstream.profile=quality\nWEBRTC__ICE_SERVERS=stun:a,stun:b"],
            _parse_override,
            (ConfigError, UnicodeDecodeError),
            ("=", "stream.", "SERVER__", ",", "true", "nan", "inf", "1_0"),
        ),
        Target(
            "body",
            [
                b'{"url": "wss://room.example", "token": "abc"}',
                b'{"text": "Hello. How are you, Mr. Smith? Fine!", "voice": "", "id": "a"}',
                b'{"url": "srt://127.0.0.1:9000"}',
            ],
            _parse_body,
            (ValueError,),
            form="json",
        ),
    )  # fmt: skip
    return {target.name: target for target in found}
