// Keeps the page connected: takes a seat or watches, notices when pictures stop coming, and comes back by itself.

import { Connection, request, RequestError } from "./connection.js";

const LOOK_MS = 250;
const STALLED_MS = 1100; // without a new picture; the server sends 25 a second, also of a silent avatar
const LOST_MS = 4000;
const ANSWER_MS = 1000;
const [FIRST_WAIT_MS, LONGEST_WAIT_MS] = [500, 15000];
const SEAT_MS = 3000; // between two tries of a watcher to get a seat

/** Varied by a quarter, so that many pages do not come back at the same moment. */
const vary = (ms) => ms * (0.75 + Math.random() / 2);

/**
 * Its `state` event has {state, text, at}:
 *   idle        not connected, and nothing tries to; `text` says why, if not by the person's wish
 *   connecting
 *   live        has a seat
 *   watching    all seats are taken; tries again and again to get one
 *   stalled     connected, but no pictures come
 *   waiting     tries again at `at` (of performance.now())
 */
export class Link extends EventTarget {
  state = "idle";
  connection = null;
  #attempt = null;
  #timers = [];
  #failures = 0;

  start() {
    if (this.state === "idle") this.#connect();
  }

  /** Connect now and not later. */
  hurry() {
    if (this.state === "waiting") this.#connect();
  }

  stop(text = "") {
    this.#drop();
    this.#failures = 0;
    this.#show("idle", { text });
  }

  #show(state, detail = {}) {
    this.state = state;
    this.dispatchEvent(new CustomEvent("state", { detail: { state, text: "", ...detail } }));
  }

  #drop() {
    this.#attempt = null;
    this.#timers.splice(0).forEach(clearTimeout);
    this.connection?.close();
    this.connection = null;
  }

  #later(action, ms) {
    this.#timers.push(setTimeout(action, ms));
  }

  async #connect() {
    this.#drop();
    const attempt = this.#attempt = {};
    this.#show("connecting");
    let error;
    for (const kind of ["talk", "watch"]) {
      const connection = new Connection();
      try {
        await connection[kind]();
        if (this.#attempt === attempt) this.#use(connection);
        else connection.close();
        return;
      } catch (caught) {
        connection.close();
        error = caught;
        if (error.status !== 503) break;
      }
    }
    if (this.#attempt === attempt) this.#fail(error);
  }

  #fail(error) {
    const hopeless = !(error instanceof RequestError) || (error.status >= 400 && error.status < 500);
    if (hopeless) {
      this.stop(error.message);
      this.dispatchEvent(new CustomEvent("refused", { detail: error }));
      return;
    }
    this.#wait(error.message, error.retryAfter * 1000);
  }

  #wait(text, least = 0) {
    this.#drop();
    const ms = vary(Math.min(LONGEST_WAIT_MS, Math.max(least, FIRST_WAIT_MS * 2 ** this.#failures)));
    this.#failures += 1;
    this.#show("waiting", { text, at: performance.now() + ms });
    this.#later(() => this.#connect(), ms);
  }

  #use(connection) {
    this.connection?.close();
    this.#timers.splice(0).forEach(clearTimeout);
    this.connection = connection;
    this.#failures = 0;
    connection.addEventListener("event", ({ detail }) => {
      if (this.connection === connection) this.dispatchEvent(new CustomEvent("event", { detail }));
    });
    connection.addEventListener("lost", ({ detail }) => this.connection === connection && this.#wait(detail));
    this.dispatchEvent(new Event("media"));
    this.#show(connection.talks ? "live" : "watching");
    this.#look(connection);
    if (!connection.talks) this.#later(() => this.#askForSeat(), vary(SEAT_MS));
  }

  async #askForSeat() {
    const attempt = this.#attempt;
    const connection = new Connection();
    try {
      await connection.talk();
      if (this.#attempt === attempt) {
        this.#use(connection);
        return;
      }
    } catch {} // still taken, or the server is gone, which is noticed elsewhere
    connection.close();
    if (this.#attempt === attempt) this.#later(() => this.#askForSeat(), vary(SEAT_MS));
  }

  /** Notice that pictures stop coming. */
  #look(connection) {
    const good = this.state;
    let [count, seen, probing] = [-1, performance.now(), false];
    const tick = async () => {
      const { decoded, received } = await connection.progress();
      if (this.connection !== connection) return;
      const [now, before] = [performance.now(), count];
      count = document.hidden ? received : decoded;
      if (count !== before) {
        seen = now;
        if (this.state === "stalled") this.#show(good);
      } else if (now - seen > LOST_MS) {
        this.#wait("No pictures come from the server.");
        return;
      } else if (now - seen > STALLED_MS) {
        if (this.state !== "stalled") this.#show("stalled");
        if (!probing) {
          probing = true;
          this.#probe(connection).finally(() => { probing = false; });
        }
      }
      this.#later(tick, LOOK_MS);
    };
    tick();
  }

  async #probe(connection) {
    try {
      await request("healthz", { cache: "no-store", signal: AbortSignal.timeout(ANSWER_MS) });
    } catch (error) {
      if (this.connection === connection && this.state === "stalled") this.#wait("The server does not answer.");
    }
  }
}
