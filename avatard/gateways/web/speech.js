// A sound file, spoken by the avatar: decoded here, sent as PCM over the same WebSocket that voice agents use.

const RATE = 16000;
const CHUNK = RATE / 5;
const BUFFERED = 1 << 20;

/** 16-bit mono PCM at 16 kHz of any file the browser can decode. */
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

/** Send a file; resolves when all of it was taken. Abort the signal to stop. */
export async function say(file, signal) {
  const pcm = await decode(file);
  const url = new URL("ws/audio", location.href);
  url.protocol = url.protocol.replace("http", "ws");
  const socket = new WebSocket(url);
  await new Promise((resolve, reject) => {
    socket.onopen = resolve;
    socket.onerror = () => reject(new Error("The server does not take sound now."));
  });
  try {
    const refused = new Promise((_, reject) => {
      socket.onmessage = ({ data }) => {
        const event = JSON.parse(data);
        if (event.type === "error") reject(new Error(event.data.message));
      };
    });
    refused.catch(() => {});
    socket.send(JSON.stringify({ sample_rate: RATE }));
    for (let n = 0; n < pcm.length && !signal.aborted; n += CHUNK) {
      while (socket.bufferedAmount > BUFFERED && !signal.aborted) {
        await Promise.race([refused, new Promise((resolve) => setTimeout(resolve, 50))]);
      }
      socket.send(pcm.subarray(n, n + CHUNK));
    }
    socket.send(JSON.stringify({ type: "end_of_utterance" }));
    await Promise.race([refused, new Promise((resolve) => setTimeout(resolve, 250))]);
  } finally {
    socket.close();
  }
}
