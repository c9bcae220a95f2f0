// Reads every topic for ten seconds of media time, checks what protocols/README.md promises, then sends speech.
// usage: node client.js PUBLISHER INPUT; prints one JSON line, exits 1 with the first broken promise.
import assert from "node:assert/strict";
import { decode, encode } from "@msgpack/msgpack";
import { Push, Subscriber } from "zeromq";

const [publisher, input] = process.argv.slice(2);
const SECONDS = 10;

const subscriber = new Subscriber();
subscriber.connect(publisher);
subscriber.subscribe("avatard/1/");

const floats = (bin) =>
  Array.from({ length: bin.length / 4 }, (_, i) => new DataView(bin.buffer, bin.byteOffset).getFloat32(4 * i, true));
const seen = { meta: [], state: [], face: [], video: [], audio: [], stats: [] };
const biggest = {};

for await (const [topic, payload] of subscriber) {
  const type = topic.toString().replace("avatard/1/", "");
  const message = decode(payload);
  assert.equal(message.v, 1);
  assert.equal(message.t, type);
  assert.equal(message.seq, seen[type].length === 0 ? message.seq : seen[type].at(-1).seq + 1, `${type} lost a message`);
  assert.equal(message.sid, (seen.meta[0] ?? message).sid);
  seen[type].push(message);
  biggest[type] = Math.max(biggest[type] ?? 0, payload.length);
  const whole = seen.face.length > 0 && message.pts_us >= seen.face[0].pts_us + SECONDS * 1e6;
  if (whole && type === "face") break;
}

const meta = seen.meta[0];
assert.equal(meta.arkit.length, 52);
assert.ok(seen.state.every((s) => ["starting", "idle", "speaking", "stopped"].includes(s.state)));
for (const face of seen.face) {
  const lm = floats(face.lm);
  const bs = floats(face.bs);
  assert.equal(lm.length, 68 * 3);
  assert.equal(bs.length, 52);
  assert.ok(lm.every((x) => Number.isFinite(x) && Math.abs(x) < 10), "landmarks are in interocular distances");
  assert.ok(bs.every((x) => x >= 0 && x <= 1), "coefficients are in 0..1");
  assert.ok(Math.abs(Math.hypot(...face.head.q) - 1) < 1e-5, "q is a unit quaternion");
  assert.equal(face.head.t.length, 3);
  assert.ok(face.head.s > 0);
  assert.equal(typeof face.speaking, "boolean");
}
for (const video of seen.video) {
  assert.deepEqual([video.enc, video.w, video.h], [meta.enc, meta.w, meta.h]);
  assert.deepEqual([...video.data.slice(0, 3)], [0xff, 0xd8, 0xff], "a JPEG file");
}
for (const audio of seen.audio) {
  assert.equal(audio.enc, "pcm_s16le");
  assert.equal(audio.sr, meta.sr);
  assert.equal(audio.data.length, 2 * audio.n);
}
for (const type of ["face", "video", "audio"]) {
  const steps = seen[type].slice(1).map((message, i) => message.pts_us - seen[type][i].pts_us);
  assert.ok(steps.every((step) => step === 1e6 / meta.fps), `${type} is every frame`);
}
assert.ok(biggest.face <= 1200, `a face message has ${biggest.face} bytes`);

const push = new Push();
push.connect(input);
const tone = Int16Array.from({ length: 1600 }, (_, i) => 8000 * Math.sin((2 * Math.PI * 440 * i) / 16000));
await push.send(encode({ v: 1, t: "audio", id: "node", enc: "pcm_s16le", sr: 16000, data: new Uint8Array(tone.buffer) }));
await push.send(encode({ t: "end_of_utterance" }));
await push.send(encode({ t: "nonsense", id: "node" }));

// The answer to the malformed one comes back as a state.
for await (const [, payload] of subscriber) {
  const message = decode(payload);
  if (message.t === "state" && message.event === "error") {
    assert.match(message.message, /nonsense/);
    break;
  }
}
console.log(JSON.stringify({ counts: Object.fromEntries(Object.entries(seen).map(([t, m]) => [t, m.length])), biggest }));
subscriber.close();
push.close();
