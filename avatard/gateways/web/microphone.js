// The microphone: permission, choice of the device, and how loud it is.

const refusals = {
  NotAllowedError: "The microphone was refused. Allow it for this page in the browser, then press Speak again.",
  NotFoundError: "There is no microphone.",
  NotReadableError: "The microphone is used by another program.",
};

export class Microphone extends EventTarget {
  #context;
  #stream;

  /** Raises Error in words for people. */
  static async open(device) {
    if (!navigator.mediaDevices) throw new Error("Browsers give the microphone only to pages over HTTPS, or on this machine.");
    const constraints = { deviceId: device ? { exact: device } : undefined, channelCount: 1, echoCancellation: true };
    try {
      return new Microphone(await navigator.mediaDevices.getUserMedia({ audio: constraints }));
    } catch (error) {
      throw new Error(refusals[error.name] ?? `The microphone cannot be used: ${error.message}`);
    }
  }

  constructor(stream) {
    super();
    this.#stream = stream;
    this.#context = new AudioContext();
    this.track.onended = () => this.dispatchEvent(new Event("ended")); // unplugged, or its permission was withdrawn
  }

  get track() {
    return this.#stream.getAudioTracks()[0];
  }

  close() {
    this.#stream.getTracks().forEach((track) => track.stop());
    this.#context.close();
  }

  /** Call `show(level)`, 0 to 1, with each picture of the screen until it is closed. */
  meter(show) {
    const context = this.#context;
    const analyser = new AnalyserNode(context, { fftSize: 1024 });
    context.createMediaStreamSource(this.#stream).connect(analyser);
    const samples = new Float32Array(analyser.fftSize);
    (function draw() {
      if (context.state === "closed") return;
      analyser.getFloatTimeDomainData(samples);
      show(Math.min(1, 6 * Math.sqrt(samples.reduce((sum, x) => sum + x * x, 0) / samples.length)));
      requestAnimationFrame(draw);
    })();
  }
}

/** The microphones that the browser tells of: [{id, label}]. */
export async function microphones() {
  const devices = await navigator.mediaDevices?.enumerateDevices() ?? [];
  return devices
    .filter(({ kind, deviceId }) => kind === "audioinput" && deviceId && deviceId !== "default")
    .map(({ deviceId, label }, n) => ({ id: deviceId, label: label || `Microphone ${n + 1}` }));
}
