// The text box, and the captions of what is said: the text of a sentence while it is heard.

import { request } from "./connection.js";

const $ = (id) => document.getElementById(id);

export class Say {
  #most = 0; // characters of a text; 0: the server does not speak texts
  #busy = false;
  #live = false;
  #spoken = null; // id of the utterance whose caption is shown

  /** @param tell shows an error: (text, code) */
  constructor(tell) {
    this.tell = tell;
    $("say").onsubmit = (event) => {
      event.preventDefault();
      this.#say();
    };
    $("say-text").oninput = () => this.#show();
    $("captions").onclick = () => this.#caption(this.#spoken, $("caption").textContent, $("caption").hidden);
  }

  /** Show the box if the server speaks texts. */
  async ask() {
    const status = await request("api/status").then((response) => response.json()).catch(() => null);
    if (!status) return;
    this.#most = status.say?.max_characters ?? 0;
    if (this.#most) $("say-text").maxLength = this.#most;
    $("say").hidden = $("captions").hidden = !this.#most;
    $("caption").hidden = !this.#most || $("captions").getAttribute("aria-pressed") !== "true";
  }

  /** Whether this page has a seat. */
  set live(live) {
    this.#live = live;
    if (!live) this.#caption(null, "");
    this.#show();
  }

  hear({ type, data }) {
    if (type === "caption") this.#caption(data.id, data.text);
    else if (type === "utterance" && data.state === "ended" && data.id === this.#spoken) this.#caption(null, "");
  }

  async #say() {
    const text = $("say-text").value.trim();
    if (!text || this.#busy || !this.#live) return;
    this.#busy = true;
    this.#show();
    try {
      const body = JSON.stringify({ text });
      await request("api/say", { method: "POST", headers: { "Content-Type": "application/json" }, body });
      $("say-text").value = "";
      this.tell("", "say");
    } catch (error) {
      if (error.code !== "interrupted") this.tell(error.message, "say");
    }
    this.#busy = false;
    this.#show();
    $("say-text").focus();
  }

  #show() {
    $("say-send").disabled = this.#busy || !this.#live || !$("say-text").value.trim();
    $("say-send").textContent = this.#busy ? "Saying…" : "Say";
  }

  #caption(id, text, shown = !$("caption").hidden) {
    this.#spoken = id;
    $("caption").textContent = text;
    $("caption").hidden = !shown;
    $("captions").setAttribute("aria-pressed", String(shown));
  }
}
