"""What of the offers of real clients is served: their SDP is in `offers/`."""

import re
from pathlib import Path

import pytest

from avatard.clock import monotonic
from avatard.protocols.broadcast import Broadcaster, Encoding
from avatard.protocols.offer import (
    Candidate,
    Codec,
    NotAcceptableError,
    OfferError,
    negotiate,
    parse_candidate,
    parse_fragment,
)
from avatard.protocols.peer import IceServers, Peer
from tests.support.webrtc import RecordingHandler

OFFERS = Path(__file__).with_name("offers")
BOTH: tuple[Codec, ...] = ("vp8", "h264")


def offer(name: str) -> str:
    return (OFFERS / f"{name}.sdp").read_text(encoding="ascii")


def sections(sdp: str) -> list[str]:
    return re.split(r"(?m)^(?=m=)", sdp)[1:]


@pytest.mark.parametrize(
    ("name", "send", "receive", "codecs"),
    [
        ("safari_26", BOTH, False, ["106 VP8", "111 opus"]),
        ("safari_26", ("h264", "vp8"), False, ["98 H264", "111 opus"]),
        ("safari_26_h264_only", BOTH, False, ["98 H264", "111 opus"]),
        ("safari_high_only", BOTH, False, ["96 H264", "111 opus"]),
        ("firefox", BOTH, False, ["109 opus", "120 VP8"]),
        ("firefox", ("h264", "vp8"), False, ["109 opus", "126 H264"]),
        ("obs_whep", BOTH, False, ["111 opus", "96 H264"]),
        ("obs_whip", (), True, ["111 opus", ""]),
        ("pion", BOTH, False, ["96 VP8", "111 opus"]),
        ("pion", ("h264", "vp8"), False, ["106 H264", "111 opus"]),
        ("chrome_page", BOTH, True, ["111 opus", "96 VP8", ""]),
        ("g711_first", BOTH, False, ["111 opus"]),
        ("g711_only", (), True, None),
    ],
)
async def test_the_offers_of_real_clients_are_answered(name, send, receive, codecs):
    text = offer(name) if codecs else offer(name).replace("a=recvonly", "a=sendonly")
    broadcaster = Broadcaster(Encoding(send[0]), monotonic) if send else None
    peer = Peer(broadcaster, IceServers(), RecordingHandler(), receive)
    answer = await peer.answer(text)
    assert len(sections(answer)) == len(sections(text)), "each section has its answer (RFC 3264)"
    for asked, section, codec in zip(sections(text), sections(answer), codecs or ["0 PCMU"], strict=True):
        first = re.search(r"a=rtpmap:(\d+ \w+)/", section)
        assert (first[1] if first else "") == codec
        assert re.search(r"a=mid:\w+", section)[0] in asked  # type: ignore[index]
        if not codec and "m=application" not in section:
            assert section.startswith("m=video 0 ") and "a=inactive" in section
    if name == "obs_whep":
        (parameters,) = re.findall(r"a=fmtp:96 (.*)\r", answer)
        assert {"packetization-mode=1", "profile-level-id=42e01f"} <= set(parameters.split(";"))
    if name == "safari_high_only":
        assert "profile-level-id=640c34" in answer, "the profile of an answer is the offered one"
    await peer.close()
    if broadcaster is not None:
        assert not broadcaster.tracks
        await broadcaster.close()


@pytest.mark.parametrize(
    ("name", "send", "receive", "said"),
    [
        ("av1_only", BOTH, False, r"no video codec of the offer can be sent: got AV1; expected VP8 or H\.264"),
        ("g711_only", BOTH, False, "no audio codec of the offer can be used: got PCMU, PCMA; expected Opus"),
        ("obs_whip", BOTH, False, "the offer receives nothing: expected .* a=recvonly; speech goes to /whip"),
        ("pion", (), True, "the offer sends no sound: expected .* a=sendonly; viewers connect to /whep"),
    ],
)
def test_what_cannot_be_served_is_told_with_what_can(name, send, receive, said):
    with pytest.raises(NotAcceptableError, match=f"^{said}") as caught:
        negotiate(offer(name), send, receive)
    assert caught.value.code == "not-acceptable" and "\n" not in str(caught.value)


def test_only_packetization_mode_1_is_sent():
    mode_0 = offer("obs_whep").replace("packetization-mode=1;", "")
    with pytest.raises(NotAcceptableError, match=r"got H\.264; expected VP8 or H\.264 \(H\.264 with packetization"):
        negotiate(mode_0, BOTH, False)


def test_obs_is_told_what_is_needed_where_there_is_no_h264():
    with pytest.raises(NotAcceptableError, match=r"^no video codec .* got H\.264; expected VP8$") as caught:
        negotiate(offer("obs_whep"), ("vp8",), False)
    assert caught.value.fields["supported"] == ["vp8"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("v=0", "neither a video nor an audio section"),
        ("m=video", "expected m=KIND PORT PROTOCOL FORMATS, got 'm=video'"),
        ("m=video 9 UDP/TLS/RTP/SAVPF 96\r\n", "no a=fingerprint"),
        (
            "m=audio 9 UDP/TLS/RTP/SAVPF 0\na=fingerprint:1\nm=video 9 UDP/TLS/RTP/SAVPF 96",
            "video section has no a=fing",
        ),
        ("m=video 9 UDP/TLS/RTP/SAVPF 96\r\na=fingerprint:1\r\n" * 101, "101 sections, expected at most 100"),
        (
            "m=audio 9 RTP "
            + " ".join(map(str, range(100)))
            + "\r\na=fingerprint:1\r\n"
            + "".join(f"a=rtpmap:{n} {'x' * 30}{n}/1\r\n" for n in range(100))
            + f"a=rtpmap:0 {'y' * 5000}/1\r\n",
            "XXX19; expected Opus",
        ),
        ("m=audio 9 UDP/TLS/RTP/SAVPF ² ٣\r\na=fingerprint:1\r\n", "got none; expected Opus"),
        (f"m=audio 9 RTP 0\r\na=rtpmap:{'9' * 5000} x/1\r\na=fingerprint:1\r\n", "got PCMU; expected Opus"),
    ],
)
def test_what_is_no_offer_is_refused(text, said):
    with pytest.raises(OfferError, match=said) as caught:
        negotiate(text, BOTH, False)
    assert caught.value.code in ("offer", "not-acceptable")


def test_sections_without_a_direction_have_that_of_the_session():
    whep = offer("obs_whep").replace("a=recvonly\n", "")
    assert negotiate(whep, BOTH, False).sends == ("video", "audio"), "they send and receive where none is given"
    with pytest.raises(NotAcceptableError):
        negotiate(whep.replace("t=0 0", "t=0 0\r\na=sendonly"), BOTH, False)


def test_candidates_are_apart_from_the_offer_and_unusable_ones_left_out():
    text = offer("obs_whep").replace("2114977791 127.0.0.1 52044", "2114977791 host.example 52044", 1)
    served = negotiate(text, BOTH, False)
    assert served.candidates == (Candidate("1", 1, "udp", 2114977791, "127.0.0.1", 52044, "host", "1", 1),)
    assert served.place(served.candidates[0]) == ("0", 1), "the first of the bundle"
    assert served.ended and "candidate" not in served.offer and served.username == "mmZM"
    many = text.replace("a=end-of-candidates", "a=candidate:1 1 udp 1 ::1 9 typ host\r\n" * 200, 1)
    assert len(negotiate(many, BOTH, False).candidates) == 100


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("candidate:nonsense", "expected FOUNDATION COMPONENT PROTOCOL PRIORITY ADDRESS PORT typ TYPE"),
        ("candidate:1 1 udp 1 ::1 70000 typ host", "port 70000 is not from 0 to 65535"),
        ("candidate:1 one udp 1 ::1 9 typ host", "component one is not from 1 to 256"),
        ("candidate:1 1 udp -1 ::1 9 typ host", "priority -1 is not from 0"),
        ("candidate:1 1 udp 1 ::1 9 typ guest", "type guest is none of host, srflx, prflx, relay"),
        ("candidate:1 1 udp 1 a.example 9 typ host", "a.example is neither an IP address nor"),
        (f"candidate:1 1 udp 1 ::1 9 typ {'9' * 5000}", "type 999"),
    ],
)
def test_a_candidate_that_cannot_be_used_is_refused_with_its_reason(text, said):
    with pytest.raises(OfferError, match=said) as caught:
        parse_candidate(text)
    assert len(str(caught.value)) < 400


def test_a_fragment_says_which_section_a_candidate_is_for():
    text = "m=audio 9 RTP 0\r\na=mid:1\r\na=candidate:1 1 udp 1 ::1 9 typ host\r\na=end-of-candidates\r\n"
    fragment = parse_fragment(text)
    assert fragment.candidates == (Candidate("1", 1, "udp", 1, "::1", 9, "host", "1"),) and fragment.ended
    assert not parse_fragment(text.replace("a=end-of-candidates", "")).ended
    credentials = parse_fragment("a=ice-ufrag:abcd\r\na=ice-pwd:0123456789012345678901\r\n")
    assert (credentials.username, credentials.password) == ("abcd", "0123456789012345678901")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("v=0", "neither a candidate nor ICE credentials"),
        ("a=ice-ufrag:abcd", "half of the ICE credentials"),
        ("a=ice-ufrag:abcd\r\na=ice-pwd:short", "malformed"),
        ("a=candidate:1 1 udp 1 ::1 9 typ host\r\n" * 101, "more than 100 candidates"),
    ],
)
def test_a_fragment_that_says_nothing_usable_is_refused(text, said):
    with pytest.raises(OfferError, match=said):
        parse_fragment(text)


def test_candidates_of_a_refused_section_are_for_the_bundle():
    """pion names its addresses in the first section only, which WHIP refuses here."""
    served = negotiate(offer("pion").replace("a=recvonly", "a=sendonly"), (), True)
    assert [served.place(candidate) for candidate in served.candidates] == [("1", 0), ("1", 0)]
    assert served.place(parse_candidate("candidate:1 1 udp 1 ::1 9 typ host", "0")) == ("1", 0)
    assert served.place(parse_candidate("candidate:1 1 udp 1 ::1 9 typ host", None, 1)) == ("1", 0)
