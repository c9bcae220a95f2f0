"""A WHEP viewer of GStreamer's webrtcbin: prints "connected" when 10 pictures were decoded.

Run by the system's Python, whose `gi` belongs to the installed GStreamer:

    /usr/bin/python3 gstreamer_viewer.py URL/whep VP8|H264 max-bundle|none
"""

import sys
import urllib.error
import urllib.request

import gi  # type: ignore[import-not-found]

gi.require_version("Gst", "1.0")
gi.require_version("GstSdp", "1.0")
gi.require_version("GstWebRTC", "1.0")
from gi.repository import (  # type: ignore[import-not-found]  # noqa: E402 - after the versions
    GLib,
    Gst,
    GstSdp,
    GstWebRTC,
)

PAYLOADS = {"VP8": "payload=96", "H264": "payload=102,packetization-mode=(string)1,profile-level-id=(string)42e01f"}
FRAMES = 10
GIVE_UP_SECONDS = 20


def main(url: str, codec: str, bundle: str) -> int:
    """Watch until enough pictures were decoded; the exit status."""
    Gst.init(None)
    loop = GLib.MainLoop()
    pipeline = Gst.Pipeline.new(None)
    peer = Gst.ElementFactory.make("webrtcbin", None)
    peer.set_property("bundle-policy", getattr(GstWebRTC.WebRTCBundlePolicy, bundle.replace("-", "_").upper()))
    pipeline.add(peer)
    receive = GstWebRTC.WebRTCRTPTransceiverDirection.RECVONLY
    video = f"application/x-rtp,media=video,encoding-name={codec},clock-rate=90000,{PAYLOADS[codec]}"
    audio = "application/x-rtp,media=audio,encoding-name=OPUS,clock-rate=48000,encoding-params=(string)2,payload=111"
    for caps in (video, audio):
        peer.emit("add-transceiver", receive, Gst.Caps.from_string(caps))
    decoded = {"frames": 0, "status": 1}

    def on_frame(sink, buffer, pad):
        decoded["frames"] += 1
        if decoded["frames"] == FRAMES:
            print("connected", flush=True)
            decoded["status"] = 0
            loop.quit()

    def on_decoded(decoder, pad):
        is_video = pad.get_current_caps().to_string().startswith("video")
        sink = Gst.ElementFactory.make("fakesink", None)
        sink.set_property("sync", False)
        if is_video:
            sink.set_property("signal-handoffs", True)
            sink.connect("handoff", on_frame)
        pipeline.add(sink)
        sink.sync_state_with_parent()
        pad.link(sink.get_static_pad("sink"))

    def on_pad(element, pad):
        decoder = Gst.ElementFactory.make("decodebin", None)
        decoder.connect("pad-added", on_decoded)
        pipeline.add(decoder)
        decoder.sync_state_with_parent()
        pad.link(decoder.get_static_pad("sink"))

    def on_offer(promise, element):
        reply = promise.get_reply()  # owns the offer
        peer.emit("set-local-description", reply.get_value("offer"), Gst.Promise.new())

    def on_gathering(element, parameter):
        if peer.get_property("ice-gathering-state") != GstWebRTC.WebRTCICEGatheringState.COMPLETE:
            return
        offer = peer.get_property("local-description").sdp.as_text()
        request = urllib.request.Request(url, offer.encode(), {"Content-Type": "application/sdp"})
        try:
            with urllib.request.urlopen(request) as response:
                answer = response.read().decode()
        except urllib.error.HTTPError as error:
            print(error.code, error.read().decode(), offer, sep="\n", flush=True)
            GLib.idle_add(loop.quit)
            return
        _, message = GstSdp.SDPMessage.new_from_text(answer)
        description = GstWebRTC.WebRTCSessionDescription.new(GstWebRTC.WebRTCSDPType.ANSWER, message)
        peer.emit("set-remote-description", description, Gst.Promise.new())

    peer.connect("pad-added", on_pad)
    peer.connect("notify::ice-gathering-state", on_gathering)
    pipeline.set_state(Gst.State.PLAYING)
    peer.emit("create-offer", None, Gst.Promise.new_with_change_func(on_offer, peer))
    GLib.timeout_add_seconds(GIVE_UP_SECONDS, loop.quit)
    loop.run()
    print(decoded["frames"], "pictures", flush=True)
    pipeline.set_state(Gst.State.NULL)
    return decoded["status"]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
