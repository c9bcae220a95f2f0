// What the page has to say: errors and notes have a line each, so that neither hides the other, and both expire.

const SECONDS = { error: 20, note: 6 };

export class Messages {
  #lines;
  #shown = {};

  /** @param lines the elements, by level: {error, note} */
  constructor(lines) {
    this.#lines = lines;
    for (const [level, line] of Object.entries(lines)) {
      line.querySelector("button").onclick = () => this.clear(level);
      line.onpointerenter = () => clearTimeout(this.#shown[level]?.timer); // it is being read
      line.onpointerleave = () => this.#expire(level);
    }
  }

  /** @param code what `settle` can take back */
  error(text, code = "") {
    this.#show("error", text, code);
  }

  note(text) {
    this.#show("note", text, "");
  }

  /** What this error told of is over. */
  settle(code) {
    if (this.#shown.error?.code === code) this.clear("error");
  }

  clear(...levels) {
    for (const level of levels) {
      clearTimeout(this.#shown[level]?.timer);
      delete this.#shown[level];
      this.#lines[level].hidden = true;
      this.#lines[level].querySelector("span").textContent = "";
    }
  }

  #show(level, text, code) {
    clearTimeout(this.#shown[level]?.timer);
    this.#shown[level] = { code };
    this.#lines[level].hidden = false;
    this.#lines[level].querySelector("span").textContent = text;
    this.#expire(level);
  }

  #expire(level) {
    const shown = this.#shown[level];
    if (!shown) return;
    clearTimeout(shown.timer);
    shown.timer = setTimeout(() => this.clear(level), SECONDS[level] * 1000);
  }
}
