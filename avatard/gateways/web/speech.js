// A sound file, spoken by the avatar: decoded here, sent as PCM over the same WebSocket that voice agents use.

const RATE = 48000;
const CHUNK = RATE / 5;
const BUFFERED = 1 << 20;

/** 16-bit mono PCM of any file that the browser can decode. */
async function decode(file) {
  const context = new OfflineAudioContext(1, 1, RATE);
  let sound;
  try {
    sound = await context.decodeAudioData(await file.arrayBuffer());
  } catch {
    throw new Error(`${file.name} has no sound that this browser can decode.`);
  }
  const mix = new Int16Array(sound.length);
  const channels = Array.from({ length: sound.numberOfChannels }, (_, k) => sound.getChannelData(k));
  for (let n = 0; n < mix.length; n += 1) {
    const mean = channels.reduce((sum, channel) => sum + channel[n], 0) / channels.length;
    mix[n] = Math.max(-32768, Math.min(32767, Math.round(mean * 32768)));
  }
  return mix;
}

/** One file that is spoken. Its `state` is preparing, queued, started; `say` resolves when it is over. */
export class Speech extends EventTarget {
  state = "preparing";
  seconds = 0;
  startedAt = 0; // of performance.now()
  #id = Math.random().toString(36).slice(2);
  #stopping = new AbortController();

  constructor(file) {
    super();
    this.file = file;
  }

  /** Seconds that were heard. */
  get played() {
    return this.state === "started" ? Math.min(this.seconds, (performance.now() - this.startedAt) / 1000) : 0;
  }

  /** Send it; resolves when it was heard, or stopped. Raises Error in words for people. */
  async say() {
    const pcm = await decode(this.file);
    const { signal } = this.#stopping;
    if (signal.aborted) return;
    this.seconds = pcm.length / RATE;
    const url = new URL("ws/audio", document.baseURI);
    url.protocol = url.protocol.replace("http", "ws");
    const socket = new WebSocket(url);
    try {
      await new Promise((resolve, reject) => {
        socket.onopen = resolve;
        socket.onerror = () => reject(new Error("The server does not take sound now."));
      });
      const over = this.#over(socket);
      over.catch(() => {}); // it is awaited below
      socket.send(JSON.stringify({ sample_rate: RATE }));
      socket.send(JSON.stringify({ type: "start_of_utterance", id: this.#id }));
      for (let n = 0; n < pcm.length && !signal.aborted && socket.readyState === WebSocket.OPEN; n += CHUNK) {
        while (socket.bufferedAmount > BUFFERED && !signal.aborted) {
          await Promise.race([over, new Promise((resolve) => setTimeout(resolve, 50))]);
        }
        socket.send(pcm.subarray(n, n + CHUNK));
      }
      socket.send(JSON.stringify({ type: "end_of_utterance" }));
      await over;
    } finally {
      socket.close();
    }
  }

  /** Resolve `say` now. What was sent is said, unless the server is told to interrupt. */
  stop() {
    this.#stopping.abort();
  }

  #over(socket) {
    return new Promise((resolve, reject) => {
      if (this.#stopping.signal.aborted) resolve();
      this.#stopping.signal.onabort = resolve;
      socket.onclose = () => reject(new Error(`The connection ended before all of ${this.file.name} was spoken.`));
      socket.onmessage = ({ data }) => {
        const event = JSON.parse(data);
        if (event.type === "error" && event.data.code === "bad-message") reject(new Error(event.data.message));
        if (event.type !== "utterance" || event.data.id !== this.#id) return;
        if (event.data.state === "ended") {
          this.#stopping.abort(); // an interrupt leaves a rest that need not be sent
          return;
        }
        this.state = event.data.state;
        if (this.state === "started") this.startedAt = performance.now();
        this.dispatchEvent(new Event("change"));
      };
    });
  }
}
