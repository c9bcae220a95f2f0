"""SDP offers of WebRTC clients: what of an offer is served, and with which codec.

Pure text in, text out; no socket. aiortc's parser and its matching of codecs accept less than clients send, so aiortc
is given only the sections and codecs that are served:

    served = negotiate(offer, send=("vp8", "h264"), receive=False)
    ...                                     # aiortc answers `served.offer`
    answer = served.answer(text)            # with the refused sections in their places

References: RFC 9429 (JSEP), RFC 8829, RFC 8843 (BUNDLE), RFC 6184 (H.264), RFC 7587 (Opus), RFC 8839 (candidates).
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from avatard.errors import UserError

Codec: TypeAlias = Literal["vp8", "h264"]
Kind: TypeAlias = Literal["video", "audio"]

NAMES = {"vp8": "VP8", "h264": "H.264", "opus": "Opus", "g722": "G.722", "pcmu": "PCMU", "pcma": "PCMA"}
H264_SENT = "42e01f"  # constrained baseline, the profile that every other one contains
CONSTRAINED_BASELINE = re.compile(r"(42[4-7c-f]0|4d[89a-f]0|58[c-f]0)", re.IGNORECASE)
RECEIVED = ("opus", "g722", "pcmu", "pcma")
SENDS, RECEIVES = ("sendonly", "sendrecv"), ("recvonly", "sendrecv")
DIRECTIONS = ("sendrecv", "sendonly", "recvonly", "inactive")
#: aiortc keeps the payload types of this range only, and static ones.
PAYLOAD_TYPES = range(96, 128)
#: A payload type; `\d` and `isdigit` know more digits than `int` does.
TYPE = "[0-9]{1,3}"
ICE_CHARS = "[A-Za-z0-9+/]{%d,256}"
MAX_QUOTED = 200  # characters of what is wrong with an offer
MAX_NAMED = 20  # codecs in a message
#: RFC 8445, section 6.1.2.5, lets an agent check 100 pairs. Browsers have a section for each track, and a dozen paths.
MAX_CANDIDATES = 100
MAX_SECTIONS = 100
CANDIDATE_TYPES = ("host", "srflx", "prflx", "relay")


class OfferError(UserError):
    """An offer, or a candidate, that cannot be used."""

    CODE = "offer"


class NotAcceptableError(OfferError):
    """An offer that is valid, and that nothing here can serve."""

    CODE = "not-acceptable"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A remote ICE candidate and the media section that it is for."""

    foundation: str
    component: int
    protocol: str
    priority: int
    address: str  # an IP address, or a name that ends with .local
    port: int
    type: str
    mid: str | None = None
    line: int | None = None  # index of the media section; read where `mid` is None


@dataclass(frozen=True, slots=True)
class Format:
    """A codec that a section offers."""

    payload_type: int
    name: str  # lower case
    parameters: str = ""

    def parameter(self, name: str, default: str = "") -> str:
        """The value of a parameter of `a=fmtp`."""
        found = re.search(rf"(?:^|[;\s]){name}=([^;\s]*)", self.parameters, re.IGNORECASE)
        return found[1] if found else default


@dataclass(frozen=True)
class Section:
    """A media section of an offer."""

    lines: tuple[str, ...]  # from m= on, without line ends
    kind: str
    port: int
    protocol: str
    formats: tuple[str, ...]
    mid: str
    direction: str

    @property
    def active(self) -> bool:
        """Whether the client wants it; port 0 refuses, but for `a=bundle-only` (RFC 8843, section 6)."""
        return self.direction != "inactive" and (self.port != 0 or "a=bundle-only" in self.lines)

    def codecs(self) -> list[Format]:
        """The codecs, the client's favourite first."""
        names = {0: "pcmu", 8: "pcma", 9: "g722"}  # RFC 3551: these need no rtpmap
        parameters: dict[int, str] = {}
        for line in self.lines:
            if mapped := re.match(rf"a=rtpmap:({TYPE}) ([^/\s]{{1,32}})/", line):
                names[int(mapped[1])] = mapped[2].lower()
            elif formatted := re.match(rf"a=fmtp:({TYPE}) (.*)", line):
                parameters[int(formatted[1])] = formatted[2]
        types = [int(text) for text in self.formats if re.fullmatch(TYPE, text)]
        return [Format(number, names[number], parameters.get(number, "")) for number in types if number in names]


@dataclass(frozen=True)
class Served:
    """What of an offer is served.

    Attributes:
        offer: for aiortc: the served sections, their chosen codecs, no candidates.
        codec: of the video that is sent; None where none is.
        sends: the kinds that are sent.
        candidates: of the client, in any section.
        ended: whether the client said that it has no more of them.
        username: of the client's ICE agent.
    """

    offer: str
    codec: Codec | None
    sends: tuple[Kind, ...]
    candidates: tuple[Candidate, ...]
    ended: bool
    username: str
    _sections: tuple[Section, ...] = field(repr=False)
    _kept: tuple[bool, ...] = field(repr=False)
    _bundle: tuple[str, ...] = field(repr=False)
    _h264_profile: str = field(repr=False)

    def answer(self, text: str) -> str:
        """The answer for the client, from aiortc's answer to `offer`."""
        session, answered = _split(text)
        session = [line for line in session if not line.startswith("a=group:BUNDLE")]
        mids = [section.mid for section, kept in zip(self._sections, self._kept, strict=True) if kept]
        bundled = [mid for mid in self._bundle if mid in mids]
        if bundled:
            session.append("a=group:BUNDLE " + " ".join(bundled))
        following = iter(answered)
        for section, kept in zip(self._sections, self._kept, strict=True):
            if not kept:
                session += _refusal(section)
                continue
            for line in next(following):
                # The profile of an answer is the offered one (RFC 6184, section 8.2.2).
                session.append(line.replace(f"profile-level-id={H264_SENT}", f"profile-level-id={self._h264_profile}"))
        return "".join(f"{line}\r\n" for line in session)

    def restart_fragment(self, username: str, password: str, candidates: Sequence[str]) -> str:
        """The fragment that answers an ICE restart, with this side's new credentials and candidates."""
        section = next(section for section, kept in zip(self._sections, self._kept, strict=True) if kept)
        lines = [f"a=group:BUNDLE {' '.join(self._bundle)}"] if self._bundle else []
        lines += [f"m={section.kind} 9 {section.protocol} {section.formats[0]}", f"a=mid:{section.mid}"]
        lines += [f"a=ice-ufrag:{username}", f"a=ice-pwd:{password}"]
        lines += [*(f"a=candidate:{candidate}" for candidate in candidates), "a=end-of-candidates"]
        return "".join(f"{line}\r\n" for line in lines)

    def place(self, candidate: Candidate) -> tuple[str | None, int]:
        """The media section of `offer` that a candidate is for: its `mid`, and its index where it has none.

        Bundled sections share the transport of the first one that is served, also where another was offered first.
        """
        index = candidate.line or 0
        mid = candidate.mid
        if mid is None and index < len(self._sections):
            mid = self._sections[index].mid or None
        if mid in self._bundle:
            served = [s.mid for s, kept in zip(self._sections, self._kept, strict=True) if kept]
            mid = next((member for member in self._bundle if member in served), mid)
        return mid, sum(self._kept[:index])


@dataclass(frozen=True)
class Fragment:
    """What a client adds to its offer later (`trickle-ice-sdpfrag`, RFC 8840).

    Attributes:
        candidates: new ones.
        ended: whether there will be no more of them.
        username: of the ICE agent; empty where the fragment has none. One that differs from the offer's restarts ICE.
        password: of the ICE agent.
    """

    candidates: tuple[Candidate, ...]
    ended: bool
    username: str = ""
    password: str = ""


def parse_fragment(text: str) -> Fragment:
    """Parse a `trickle-ice-sdpfrag`.

    Raises:
        OfferError: a candidate or a credential is malformed, or the fragment has neither.
    """
    candidates: list[Candidate] = []
    credentials = {"ice-ufrag": "", "ice-pwd": ""}
    mid: str | None = None
    ended = False
    for line in map(str.strip, text.splitlines()):
        name, _, value = line.removeprefix("a=").partition(":")
        if name == "mid":
            mid = value
        elif name == "candidate":
            if len(candidates) == MAX_CANDIDATES:
                raise OfferError(f"the fragment has more than {MAX_CANDIDATES} candidates")
            candidates.append(parse_candidate(line, mid))
        elif name == "end-of-candidates":
            ended = True
        elif name in credentials:
            credentials[name] = value
    username, password = credentials.values()
    if bool(username) != bool(password):
        raise OfferError("the fragment has half of the ICE credentials: expected a=ice-ufrag and a=ice-pwd")
    if username and not (re.fullmatch(ICE_CHARS % 4, username) and re.fullmatch(ICE_CHARS % 22, password)):
        raise OfferError("the fragment's ICE credentials are malformed: expected RFC 8839, section 5.4")
    if not candidates and not ended and not username:
        raise OfferError("the fragment has neither a candidate nor ICE credentials")
    return Fragment(tuple(candidates), ended, username, password)


def negotiate(text: str, send: Sequence[Codec], receive: bool) -> Served:
    """Decide what of an offer is served.

    Args:
        text: the offer.
        send: video codecs, the favourite first; empty for a client that is sent nothing.
        receive: whether the client's sound is wanted.

    Raises:
        OfferError: it is not an offer that a WebRTC client could have made.
        NotAcceptableError: nothing in it, or no codec of a section in it, can be served.
    """
    session, groups = _split(text)
    if len(groups) > MAX_SECTIONS:
        raise OfferError(f"the offer has {len(groups):,} sections, expected at most {MAX_SECTIONS}")
    sections = tuple(_section(lines, session) for lines in groups)
    if not any(section.kind in ("video", "audio") for section in sections):
        raise OfferError("the offer has neither a video nor an audio section")
    if "a=fingerprint:" not in text:
        raise OfferError("the offer has no a=fingerprint: expected one for DTLS")
    sent = _first(sections, RECEIVES, ("video", "audio") if send else ())
    received = _first(sections, SENDS, ("audio",) if receive else ())
    if not sent and not received:
        raise _nothing_served(bool(send), receive)
    bundle = next((line.split()[1:] for line in session if line.startswith("a=group:BUNDLE")), [])
    application = next((index for index, section in enumerate(sections) if _is_data_channel(section)), None)
    kept = [index in (*sent, *received, application) for index in range(len(sections))]
    for section in (section for section, needed in zip(sections, kept, strict=True) if needed):
        if not any(line.startswith("a=fingerprint:") for line in (*session, *section.lines)):
            raise OfferError(f"the offer's {section.kind} section has no a=fingerprint: expected one for DTLS")
    codec: Codec | None = None
    profile = H264_SENT
    rewritten = [line for line in session if not line.startswith("a=group:")]
    remaining = [mid for mid in bundle if any(k and s.mid == mid for k, s in zip(kept, sections, strict=True))]
    if remaining:
        rewritten.append("a=group:BUNDLE " + " ".join(remaining))
    for index, section in enumerate(sections):
        if index in sent and section.kind == "video":
            codec, chosen = _choose_video(section, send)
            profile = chosen.parameter("profile-level-id", H264_SENT)
            rewritten += _rewrite(section, [chosen], "recvonly")
        elif index in sent or index in received:
            names = ("opus",) if index in sent else RECEIVED
            directions = {(True, True): "sendrecv", (True, False): "recvonly", (False, True): "sendonly"}
            chosen_audio = _choose_audio(section, names)
            rewritten += _rewrite(section, chosen_audio, directions[index in sent, index in received])
        elif kept[index]:
            rewritten += [line for line in section.lines if not _is_candidate(line)]
    return Served(
        offer="".join(f"{line}\r\n" for line in rewritten),
        codec=codec,
        sends=tuple(kind for kind in ("video", "audio") if any(sections[index].kind == kind for index in sent)),
        candidates=tuple(_candidates(sections)),
        ended="a=end-of-candidates" in text,
        username=found[1] if (found := re.search(r"^a=ice-ufrag:(\S+)", text, re.MULTILINE)) else "",
        _sections=sections,
        _kept=tuple(kept),
        _bundle=tuple(bundle),
        _h264_profile=profile,
    )


def parse_candidate(text: str, mid: str | None = None, line: int | None = None) -> Candidate:
    """Parse an ICE candidate (`candidate:...`, RFC 8839, section 5.1).

    Raises:
        OfferError: says which part is wrong.
    """
    fields = text.strip().removeprefix("a=").removeprefix("candidate:").split()
    if len(fields) < 8 or fields[6] != "typ":
        raise OfferError(
            f"the candidate {_shortened(text)} cannot be used: expected FOUNDATION COMPONENT PROTOCOL PRIORITY ADDRESS "
            "PORT typ TYPE"
        )
    foundation, component, protocol, priority, address, port, _, kind = fields[:8]
    wrong = ""
    if not _is_number(component, 1, 256):
        wrong = f"component {component} is not from 1 to 256"
    elif not _is_number(priority, 0, 2**32 - 1):
        wrong = f"priority {priority} is not from 0 to {2**32 - 1}"
    elif not _is_number(port, 0, 65535):
        wrong = f"port {port} is not from 0 to 65535"
    elif kind not in CANDIDATE_TYPES:
        wrong = f"type {kind} is none of {', '.join(CANDIDATE_TYPES)}"
    elif not address.endswith(".local") and not _is_address(address):
        wrong = f"{address} is neither an IP address nor a name that ends with .local"
    if wrong:
        raise OfferError(f"the candidate {_shortened(text)} cannot be used: {wrong[:MAX_QUOTED]}")
    return Candidate(foundation, int(component), protocol.lower(), int(priority), address, int(port), kind, mid, line)


def _split(text: str) -> tuple[list[str], list[list[str]]]:
    """The session's lines and those of each media section."""
    session: list[str] = []
    groups: list[list[str]] = []
    for line in filter(None, (line.strip() for line in text.splitlines())):
        if line.startswith("m="):
            groups.append([line])
        else:
            (groups[-1] if groups else session).append(line)
    return session, groups


def _section(lines: list[str], session: list[str]) -> Section:
    found = re.fullmatch(r"m=(\S+) ([0-9]{1,5})(?:/\d+)? (\S+) (.+)", lines[0])
    if found is None:
        raise OfferError(f"the offer cannot be used: expected m=KIND PORT PROTOCOL FORMATS, got {_shortened(lines[0])}")
    mid = next((line.removeprefix("a=mid:") for line in lines if line.startswith("a=mid:")), "")
    # RFC 8866, section 6.7: a section without a direction has the session's, and else sends and receives.
    attributes = [line.removeprefix("a=") for line in [*lines, *session]]
    direction = next((name for name in attributes if name in DIRECTIONS), "sendrecv")
    return Section(tuple(lines), found[1], int(found[2]), found[3], tuple(found[4].split()), mid, direction)


def _first(sections: Sequence[Section], directions: Sequence[str], kinds: Sequence[str]) -> list[int]:
    """The first section of each kind that goes in one of these directions."""
    found: dict[str, int] = {}
    for index, section in enumerate(sections):
        if section.kind in kinds and section.active and section.direction in directions:
            found.setdefault(section.kind, index)
    return list(found.values())


def _is_data_channel(section: Section) -> bool:
    return section.kind == "application" and section.active and "SCTP" in section.protocol


def _nothing_served(sends: bool, receives: bool) -> NotAcceptableError:
    if sends and receives:
        return NotAcceptableError("no section of the offer is active: expected video or audio")
    if sends:
        return NotAcceptableError(
            "the offer receives nothing: expected a video or an audio section with a=recvonly; speech goes to /whip"
        )
    return NotAcceptableError(
        "the offer sends no sound: expected an audio section with a=sendonly; viewers connect to /whep"
    )


def _choose_video(section: Section, send: Sequence[Codec]) -> tuple[Codec, Format]:
    offered = section.codecs()
    usable = [format for format in offered if format.payload_type in PAYLOAD_TYPES]
    for codec in send:
        fitting = [format for format in usable if format.name == codec and _is_decodable(format)]
        if fitting:
            return codec, min(fitting, key=_is_another_profile)  # the first where several are equal
    names = " or ".join(NAMES[codec] for codec in send)
    mode = " (H.264 with packetization-mode=1)" if "h264" in send else ""
    raise NotAcceptableError(
        f"no video codec of the offer can be sent: got {_names(offered)}; expected {names}{mode}",
        kind="video",
        offered=_unique(offered),
        supported=list(send),
    )


def _is_decodable(format: Format) -> bool:
    """Whether aiortc's packets of this codec can be read: it sends fragments (RFC 6184, section 6.3)."""
    return format.name != "h264" or format.parameter("packetization-mode", "0") == "1"


def _is_another_profile(format: Format) -> bool:
    profile = format.parameter("profile-level-id", H264_SENT)
    return format.name == "h264" and CONSTRAINED_BASELINE.match(profile[:4]) is None


def _choose_audio(section: Section, names: Sequence[str]) -> list[Format]:
    offered = section.codecs()
    fitting = [
        format
        for format in offered
        if format.name in names and (format.payload_type in PAYLOAD_TYPES or format.name != "opus")
    ]
    if not fitting:
        known = " or ".join(NAMES[name] for name in names)
        raise NotAcceptableError(
            f"no audio codec of the offer can be used: got {_names(offered)}; expected {known}",
            kind="audio",
            offered=_unique(offered),
            supported=list(names),
        )
    return fitting


def _unique(formats: Sequence[Format]) -> list[str]:
    auxiliary = ("rtx", "red", "ulpfec", "flexfec-03", "telephone-event", "cn")
    return list(dict.fromkeys(format.name for format in formats if format.name not in auxiliary))[:MAX_NAMED]


def _names(formats: Sequence[Format]) -> str:
    return ", ".join(NAMES.get(name, name.upper()) for name in _unique(formats)) or "none"


def _rewrite(section: Section, chosen: Sequence[Format], direction: str) -> list[str]:
    """The section's lines with the chosen codecs, and their retransmission, alone."""
    types = {format.payload_type for format in chosen}
    repairs = [f for f in section.codecs() if f.name == "rtx" and f.payload_type in PAYLOAD_TYPES]
    types |= {repair.payload_type for repair in repairs if repair.parameter("apt") in map(str, types)}
    formats = [text for text in section.formats if re.fullmatch(TYPE, text) and int(text) in types]
    # A port of 0 here is that of a bundle-only section.
    lines = [f"m={section.kind} 9 {section.protocol} {' '.join(formats)}"]
    for line in section.lines[1:]:
        about = re.match(rf"a=(?:rtpmap|fmtp|rtcp-fb):({TYPE}) ", line)
        if about and int(about[1]) not in types:
            continue
        if _is_candidate(line) or line[2:] in DIRECTIONS or line == "a=bundle-only":
            continue
        if line.startswith("a=extmap:") and len(line.split()) != 2:
            continue  # extension attributes, which aiortc cannot read
        if line.startswith("a=ssrc") and direction == "recvonly":
            continue  # of a track that is not received
        lines.append(re.sub(r"(?i)profile-level-id=[^;\s]*", f"profile-level-id={H264_SENT}", line))
    for format in chosen:
        if not any(line.startswith(f"a=rtpmap:{format.payload_type} ") for line in lines):
            lines.append(f"a=rtpmap:{format.payload_type} {format.name.upper()}/8000")
    return [*lines, f"a={direction}"]


def _refusal(section: Section) -> list[str]:
    """The section of an answer that refuses (RFC 3264, section 6)."""
    lines = [f"m={section.kind} 0 {section.protocol} {' '.join(section.formats)}", "c=IN IP4 0.0.0.0"]
    return [*lines, *([f"a=mid:{section.mid}"] if section.mid else []), "a=inactive"]


def _is_candidate(line: str) -> bool:
    return line.startswith("a=candidate:") or line == "a=end-of-candidates"


def _candidates(sections: Sequence[Section]) -> list[Candidate]:
    """The candidates of all sections; one that cannot be used does not spoil the others."""
    found = []
    for index, section in enumerate(sections):
        for line in section.lines:
            if line.startswith("a=candidate:"):
                with contextlib.suppress(OfferError):
                    found.append(parse_candidate(line, section.mid or None, index))
    return found[:MAX_CANDIDATES]


def _is_number(text: str, least: int, most: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 12 and least <= int(text) <= most


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
