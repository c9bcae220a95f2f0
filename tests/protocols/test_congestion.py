"""The bit rate for one viewer, from reports of its receiver; time is passed in."""

from avatard.protocols.congestion import SHARES, Congestion


class Network:
    """Reports once a second of what gets through."""

    def __init__(self, bits_per_second, full=1_500_000, loss=0.0, estimates=True):
        self.bits_per_second, self.full, self.loss, self.estimates = bits_per_second, full, loss, estimates
        self.congestion, self.now, self.tiers = Congestion(), 0.0, list[int]()

    def live(self, seconds):
        for _ in range(seconds):
            rate = self.full * self.congestion.share
            for _ in range(25):
                self.now += 0.04
                self.congestion.sent(round(rate / 8 / 25), self.now)
            passed = min(rate, self.bits_per_second)
            if self.estimates:
                self.congestion.estimated(0.85 * passed if passed < rate else 1.4 * rate, self.now)
            self.congestion.reported(max(self.loss, 1 - passed / rate), self.now)
            self.tiers.append(self.congestion.tier)
        return self.congestion.share


def test_a_good_network_gets_all():
    assert Network(9e9).live(60) == 1.0
    assert Network(9e9, loss=0.05).live(60) == 1.0, "what is lost at random is repaired"


def test_a_narrow_network_gets_what_it_carries_and_is_tried_less_and_less():
    for estimates in (True, False):
        network = Network(400_000, estimates=estimates)
        network.live(10)
        assert network.congestion.share == 0.25
        network.live(600)
        rises = [n for n in range(1, len(network.tiers)) if network.tiers[n] < network.tiers[n - 1]]
        assert 2 < len(rises) < 25 and rises[-1] - rises[-2] > 3 * (rises[1] - rises[0])
        assert network.tiers.count(SHARES.index(0.25)) > 550


def test_a_network_that_recovers_gets_all_again():
    network = Network(100_000)
    assert network.live(20) == SHARES[-1]
    network.bits_per_second = 9e9
    assert network.live(200) == 1.0


def test_an_estimate_that_only_lags_behind_a_rising_rate_is_no_alarm():
    congestion, now = Congestion(), 0.0
    for n in range(1000):
        now += 0.04
        congestion.sent(8000, now)  # 1.6 Mb/s
        congestion.estimated(300_000 * 1.003**n, now)
    assert congestion.share == 1.0
