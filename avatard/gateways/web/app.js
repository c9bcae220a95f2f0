import { Connection, ConnectionError, request } from "./connection.js";
import { say } from "./speech.js";

const $ = (id) => document.getElementById(id);
const [video, audio, stage] = [$("video"), $("audio"), $("stage")];
let connection = null;
let microphone = null;
let speech = null;
let panel = null;

const describe = { idle: "Not connected", busy: "Connecting…", live: "Live", bad: "Disconnected" };

function show(state, text = describe[state]) {
  $("status").dataset.state = state;
  $("status").textContent = text;
  const live = state === "live";
  $("curtain").hidden = live;
  $("connect").disabled = state === "busy";
  for (const id of ["microphone", "mute", "interrupt", "disconnect"]) $(id).disabled = !live;
}

function tell(text, note = false) {
  $("message").textContent = text;
  $("message").classList.toggle("note", note);
  $("message").hidden = !text;
}

// -- connection

async function connect() {
  tell("");
  show("busy");
  connection = new Connection();
  connection.addEventListener("track", ({ detail: { track } }) => {
    const element = track.kind === "video" ? video : audio;
    element.srcObject = new MediaStream([track]);
    element.play().catch(() => {});
  });
  connection.addEventListener("event", ({ detail }) => react(detail));
  connection.addEventListener("lost", () => hangUp("bad", "The connection to the server was lost."));
  try {
    await connection.open();
    show("live");
    watch();
    await listDevices();
    $("microphone").focus();
  } catch (error) {
    hangUp("idle", error instanceof ConnectionError ? error.message : `Connecting failed: ${error.message}`);
  }
}

function hangUp(state = "idle", text = "") {
  clearInterval(panel);
  stopMicrophone();
  speech?.abort();
  connection?.close();
  connection = null;
  stage.classList.remove("speaking");
  for (const id of ["fps", "latency", "rtf", "skew"]) $(id).textContent = "–";
  show(state);
  tell(text);
}

function react({ type, data }) {
  switch (type) {
    case "bot-started-speaking": stage.classList.add("speaking"); break;
    case "bot-stopped-speaking": stage.classList.remove("speaking"); break;
    case "bot-interrupted": speech?.abort(); stage.classList.remove("speaking"); break;
    case "bot-ready": tell(""); break;
    case "error": tell(data.message); break;
    case "effort": {
      const less = data.pictures_per_second < 25;
      tell(less ? `The server is busy: it makes ${data.pictures_per_second} pictures a second until it is calm again.` : "", true);
      break;
    }
    case "metrics":
      $("latency").textContent = data.audio_to_photon_ms ? `${Math.round(data.audio_to_photon_ms)} ms` : `≈ ${Math.round(data.delay_ms)} ms`;
      $("rtf").textContent = data.rtf.toFixed(2);
      $("skew").textContent = `${data.av_skew_ms.toFixed(1)} ms`;
      break;
  }
}

function watch() {
  let [frames, at] = [0, performance.now()];
  panel = setInterval(async () => {
    const [decoded, now] = [await connection?.framesDecoded() ?? 0, performance.now()];
    if (frames) $("fps").textContent = ((decoded - frames) * 1000 / (now - at)).toFixed(1);
    [frames, at] = [decoded, now];
  }, 1000);
}

// -- microphone

async function listDevices() {
  const devices = await navigator.mediaDevices?.enumerateDevices() ?? [];
  const found = devices.filter(({ kind, deviceId }) => kind === "audioinput" && deviceId && deviceId !== "default");
  const chosen = $("device").value;
  $("device").replaceChildren(new Option("System default", ""), ...found.map((d, n) => new Option(d.label || `Microphone ${n + 1}`, d.deviceId)));
  $("device").value = found.some(({ deviceId }) => deviceId === chosen) ? chosen : "";
}

const refusals = {
  NotAllowedError: "The microphone was refused. Allow it for this page in the browser, then press Speak again.",
  NotFoundError: "There is no microphone.",
  NotReadableError: "The microphone is used by another program.",
};

async function startMicrophone() {
  if (!navigator.mediaDevices) {
    tell("Browsers give the microphone only to pages over HTTPS, or on this machine.");
    return;
  }
  try {
    const deviceId = $("device").value ? { exact: $("device").value } : undefined;
    const stream = await navigator.mediaDevices.getUserMedia({ audio: { deviceId, channelCount: 1, echoCancellation: true } });
    microphone = { stream, context: new AudioContext() };
    await connection.speak(stream.getAudioTracks()[0]);
    $("microphone").setAttribute("aria-pressed", "true");
    $("microphone").querySelector("span").textContent = "Stop speaking";
    tell("");
    meter();
    await listDevices();
  } catch (error) {
    stopMicrophone();
    tell(refusals[error.name] ?? `The microphone cannot be used: ${error.message}`);
  }
}

function stopMicrophone() {
  microphone?.stream.getTracks().forEach((track) => track.stop());
  microphone?.context.close();
  microphone = null;
  connection?.speak(null).catch(() => {});
  $("microphone").setAttribute("aria-pressed", "false");
  $("microphone").querySelector("span").textContent = "Speak";
  $("level").style.transform = "";
}

function meter() {
  const { stream, context } = microphone;
  const analyser = new AnalyserNode(context, { fftSize: 1024 });
  context.createMediaStreamSource(stream).connect(analyser);
  const samples = new Float32Array(analyser.fftSize);
  (function draw() {
    if (microphone?.context !== context) return;
    analyser.getFloatTimeDomainData(samples);
    const loud = Math.sqrt(samples.reduce((sum, x) => sum + x * x, 0) / samples.length);
    $("level").style.transform = `scaleX(${Math.min(1, loud * 6).toFixed(3)})`;
    requestAnimationFrame(draw);
  })();
}

// -- files

async function play(file) {
  speech?.abort();
  speech = new AbortController();
  $("sound-name").textContent = `Speaking ${file.name}`;
  try {
    await say(file, speech.signal);
  } catch (error) {
    tell(error.message);
  }
  $("sound-name").textContent = "Play a sound file…";
}

async function swap(file, face = 0) {
  $("faces").hidden = true;
  $("portrait-name").textContent = `Checking ${file.name}…`;
  try {
    await request(`api/identity${face ? `?face=${face}` : ""}`, { method: "POST", headers: { "Content-Type": file.type }, body: file });
    tell(`${file.name} is the avatar now.`, true);
    $("rest").src = `api/portrait?${Date.now()}`;
  } catch (error) {
    tell(error.message);
    askForFace(file, Number(/has (\d+) faces/.exec(error.message)?.[1] ?? 0));
  }
  $("portrait-name").textContent = "Choose another portrait…";
}

function askForFace(file, count) {
  const choices = Array.from({ length: count }, (_, n) => {
    const button = document.createElement("button");
    [button.type, button.textContent] = ["button", n + 1];
    button.onclick = () => swap(file, n + 1);
    return button;
  });
  $("faces").replaceChildren("Which face, from the left?", ...choices);
  $("faces").hidden = count === 0;
  choices[0]?.focus();
}

function take(file) {
  if (!file) return;
  if (file.type.startsWith("image/")) swap(file);
  else if (connection) play(file);
  else tell("Connect first, then play a sound.");
}

// -- wiring

$("connect").onclick = connect;
$("disconnect").onclick = () => hangUp();
$("interrupt").onclick = () => request("api/interrupt", { method: "POST" }).catch((error) => tell(error.message));
$("microphone").onclick = () => (microphone ? stopMicrophone() : startMicrophone());
$("device").onchange = () => microphone && (stopMicrophone(), startMicrophone());
$("mute").onclick = () => {
  audio.muted = !audio.muted;
  $("mute").setAttribute("aria-pressed", String(audio.muted));
  $("mute").querySelector("span").textContent = audio.muted ? "Muted" : "Mute";
};
for (const id of ["sound", "portrait"]) {
  $(id).onchange = () => { take($(id).files[0]); $(id).value = ""; };
}

let depth = 0;
const dropping = (on) => stage.classList.toggle("dropping", on);
addEventListener("dragenter", () => dropping((depth += 1) > 0));
addEventListener("dragleave", () => dropping((depth -= 1) > 0));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  dropping(Boolean(depth = 0));
  take(event.dataTransfer.files[0]);
});
addEventListener("pagehide", () => connection?.close());
