"""How much of the bit rate the network to a viewer carries, from what the viewer's receiver reports (RTCP).

Receivers estimate what they can get (REMB, draft-alvestrand-rmcat-remb) from the growth of delays, and report what was
lost (RFC 3550, section 6.4). Neither says more than is being sent: so the bit rate falls in steps when an estimate is
below what is sent or too much is lost, and rises a step at a time when all is well, as an experiment that is repeated
less often each time it fails (McCanne et al., Receiver-driven Layered Multicast, 1996).

Sans-I/O: the caller says what time it is.
"""

from __future__ import annotations

from collections import deque
from typing import Final

#: Of the configured bit rate of pictures.
SHARES: Final = (1.0, 0.5, 0.25, 0.125)
MOST_LOST, CALM_LOST = 0.1, 0.07  # of packets: libwebrtc lowers the bit rate above 10 %, and random loss is repaired
LOSS_WEIGHT = 0.3  # of a report, of which there is about one a second
ESTIMATE_SECONDS = 3.0  # that an estimate is worth
SENT_SECONDS = 1.0  # that the rate sent is measured over
HOLD_SECONDS = 1.5  # between two steps down: what is in the queues of the network must get through
FIRST_RISE_SECONDS, LAST_RISE_SECONDS = 5.0, 60.0  # without trouble, until more is tried
FAILED_SECONDS = 10.0  # trouble so soon after a rise is its consequence
BELOW, ABOVE = 0.9, 1.15  # of the rate sent: an estimate that asks for less, and one that allows more


class Congestion:
    """The share of the bit rate for one viewer."""

    def __init__(self) -> None:
        self.tier = 0  # of SHARES
        self._estimates: deque[tuple[float, float]] = deque()  # when, bits a second
        self._lost = self._lost_now = 0.0  # the mean, and the newest
        self._sent: deque[tuple[float, int]] = deque()  # when, bytes
        self._changed_at = self._rose_at = float("-inf")
        self._rise_seconds = FIRST_RISE_SECONDS

    @property
    def share(self) -> float:
        """Of the configured bit rate."""
        return SHARES[self.tier]

    def sent(self, size: int, now: float) -> None:
        """A picture of so many bytes was sent."""
        self._sent.append((now, size))
        while self._sent[0][0] < now - SENT_SECONDS:
            self._sent.popleft()

    def estimated(self, bits_per_second: float, now: float) -> None:
        """The receiver says what it can get (REMB)."""
        self._estimates.append((now, bits_per_second))
        self._decide(now)

    def reported(self, lost: float, now: float) -> None:
        """The receiver says which part of the packets since its last report was lost, 0 to 1."""
        self._lost += LOSS_WEIGHT * (lost - self._lost)
        self._lost_now = lost
        self._decide(now)

    def _decide(self, now: float) -> None:
        rate = 8 * sum(size for at, size in self._sent if at >= now - SENT_SECONDS) / SENT_SECONDS
        while self._estimates and now - self._estimates[0][0] > ESTIMATE_SECONDS:
            self._estimates.popleft()
        estimate = self._estimates[-1][1] if self._estimates else None
        # An estimate follows a rate that rises, seconds behind: it is a warning only when it falls, or with losses.
        falls = estimate is not None and estimate < BELOW * max(value for _, value in self._estimates)
        short = estimate is not None and estimate < BELOW * rate and (falls or self._lost > CALM_LOST)
        calm = self._lost < CALM_LOST and (estimate is None or estimate > ABOVE * rate)
        since = now - self._changed_at
        if (short or self._lost > MOST_LOST) and since > HOLD_SECONDS:
            self._fall(
                min(BELOW, 1 - self._lost_now, estimate / rate if short and estimate is not None else BELOW), now
            )
        elif calm and self.tier and since > self._rise_seconds:
            self.tier -= 1
            self._changed_at = self._rose_at = now

    def _fall(self, factor: float, now: float) -> None:
        """Send at most so much of what is sent now, and less by a step at least."""
        lowest = len(SHARES) - 1
        if now - self._rose_at < FAILED_SECONDS:
            self._rise_seconds = min(2 * self._rise_seconds, LAST_RISE_SECONDS)
            self.tier = min(self.tier + 1, lowest)  # where it was well before
        elif self.tier < lowest:
            self._rise_seconds = FIRST_RISE_SECONDS
            lower, allowed = range(self.tier + 1, lowest), self.share * factor
            self.tier = next((tier for tier in lower if SHARES[tier] <= allowed), lowest)
        self._lost = 0.0  # of what was sent before
        self._changed_at = now
