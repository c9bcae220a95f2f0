"""A viewer behind a network that loses, delays and reorders packets; scripts/network_weather.py measures more of it."""

import asyncio

from avatard.protocols.congestion import SHARES
from tests.support.serving import until
from tests.support.weather import Weather, number_of, picture, texture, watching


async def test_picture_and_sound_go_on_and_a_key_frame_comes_when_it_is_asked_for():
    async with watching(Weather(loss=0.05, jitter_seconds=0.02)) as viewer:
        await until(lambda: viewer.pictures > 20 and viewer.sounds > 20, 60)
        requests, keys = viewer.key_requests, viewer.key_frames
        # A request may be lost, too.
        while viewer.key_frames == keys:
            await viewer.request_key_frame()
            await asyncio.sleep(0.2)
        assert viewer.key_requests > requests and viewer.relay.dropped


async def test_a_viewer_whose_network_carries_less_gets_a_lower_bit_rate_and_sees_on():
    async with watching(Weather()) as viewer:
        await until(lambda: viewer.pictures > 5, 60)
        track = next(track for track in viewer.broadcaster.tracks if track.rendition is not None)
        keys = viewer.key_frames

        def fallen():
            track.reported(0.9)
            return viewer.share == SHARES[-1]

        await until(fallen, 60)
        seen = viewer.pictures
        await until(lambda: viewer.pictures > seen + 10, 60)
        assert viewer.key_frames > keys, "it changes at a key frame"


def test_a_picture_says_its_number():
    behind = texture()
    assert [number_of(picture(behind, index)) for index in (0, 1, 1000, 65535)] == [0, 1, 1000, 65535]
