// The figures of the panel: what the server measures, and what this browser sees of it.

const FULL_RATE = 25;
const $ = (id) => document.getElementById(id);
const milliseconds = (value) => `${Math.round(value)} ms`;

export class Panel {
  #metrics = null; // the latest
  #fresh = 0; // part of the pictures played that had not been shown before
  #decoded = null; // {count, at}

  /** The event `metrics`. */
  update(metrics) {
    const before = this.#metrics ?? metrics;
    const played = metrics.frames_played - before.frames_played;
    this.#fresh = played > 0 ? 1 - (metrics.frames_repeated - before.frames_repeated) / played : 1;
    this.#metrics = metrics;
    $("latency").textContent = metrics.live_latency_ms > 0
      ? milliseconds(metrics.live_latency_ms)
      : `${milliseconds(metrics.delay_ms)} (planned)`;
    $("rtf").textContent = metrics.rtf.toFixed(2);
    $("skew").textContent = `${metrics.av_skew_ms.toFixed(1)} ms`;
    this.rate(metrics.pictures_per_second);
  }

  /** The server makes so many different pictures a second; the others repeat one. */
  rate(perSecond) {
    if (this.#metrics) this.#metrics.pictures_per_second = perSecond;
    const less = perSecond < FULL_RATE;
    const text = less ? `The server is busy: it makes ${perSecond} different pictures a second, not ${FULL_RATE}.` : "";
    if ($("busy").textContent !== text) $("busy").textContent = text;
    $("busy").hidden = !less;
  }

  /** So many pictures were decoded until now. */
  decoded(count) {
    const now = performance.now();
    if (this.#decoded && this.#metrics) {
      const rate = ((count - this.#decoded.count) * 1000) / (now - this.#decoded.at);
      const made = this.#metrics.pictures_per_second * this.#fresh;
      $("fps").textContent = Math.max(0, Math.min(rate, made)).toFixed(1);
    }
    this.#decoded = { count, at: now };
  }

  clear() {
    [this.#metrics, this.#decoded] = [null, null];
    for (const id of ["fps", "latency", "rtf", "skew"]) $(id).textContent = "–";
    $("busy").hidden = true;
    $("busy").textContent = "";
  }
}
