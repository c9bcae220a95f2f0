import { request } from "./connection.js";
import { Link } from "./link.js";
import { Messages } from "./messages.js";
import { Microphone, microphones } from "./microphone.js";
import { Panel } from "./panel.js";
import { faceButtons, isPicture, prepare } from "./portrait.js";
import { Say } from "./say.js";
import { Speech } from "./speech.js";

const $ = (id) => document.getElementById(id);
const [video, audio, stage] = [$("video"), $("audio"), $("stage")];
const link = new Link();
const panel = new Panel();
const messages = new Messages({ error: $("error"), note: $("note") });
const say = new Say((text, code) => (text ? messages.error(text, code) : messages.settle(code)));
let microphone = null;
let speech = null;
let waiting = null; // a sound file, chosen before it can be spoken
let identity = null; // digest of who is shown

// -- connection

const words = {
  idle: "Not connected",
  connecting: "Connecting…",
  live: "Live",
  watching: "Watching",
  stalled: "No picture",
  waiting: "Not connected, trying again",
};
let retryAt = 0;
let follow = false; // the focus was on a button that is gone when there is a connection

link.addEventListener("state", ({ detail: { state, text, at } }) => {
  const [connected, live] = [state === "live" || state === "watching", state === "live"];
  follow ||= document.activeElement === $("connect");
  retryAt = at ?? 0;
  $("status").dataset.state = stage.dataset.state = state;
  $("status").textContent = words[state];
  $("curtain").hidden = connected;
  $("view").hidden = !connected;
  $("seat").hidden = state !== "watching";
  for (const id of ["microphone", "interrupt"]) $(id).disabled = !live;
  $("disconnect").disabled = state === "idle";
  $("connect").hidden = state === "stalled" || state === "connecting";
  $("connect").textContent = state === "waiting" ? "Try now" : "Connect";
  $("give-up").hidden = state !== "waiting";
  $("intro").hidden = state !== "idle";
  const reason = { waiting: text, stalled: "No pictures come from the server.", connecting: words.connecting }[state] ?? "";
  $("reason").textContent = reason;
  $("reason").hidden = !reason;
  if (live) messages.settle("connection");
  if (!connected) stage.classList.remove("speaking");
  if (!connected && state !== "stalled") panel.clear();
  if (state === "idle" || state === "watching") stopMicrophone();
  if (state === "idle" && text) messages.error(text, "connection");
  if (live && microphone) link.connection.speak(microphone.track);
  if (live && waiting) play(waiting);
  if (connected) refreshIdentity();
  if (connected && follow) $(live ? "microphone" : "disconnect").focus();
  if (connected) follow = false;
  say.live = live;
  if (connected) say.ask();
  showSpeech();
});

link.addEventListener("refused", ({ detail }) => {
  if (detail.status === 401) location.reload(); // the server answers with the form that asks for the token
});

link.addEventListener("media", () => {
  video.srcObject = link.connection.video;
  audio.srcObject = link.connection.audio;
  video.play().catch(() => {});
  audio.play().catch(({ name }) => {
    if (name !== "NotAllowedError") return;
    mute(true);
    messages.note("This browser plays sound only after a click: press Mute to hear the avatar.");
  });
  listDevices();
});

link.addEventListener("event", ({ detail: { type, data } }) => {
  say.hear({ type, data });
  switch (type) {
    case "bot-started-speaking": stage.classList.add("speaking"); break;
    case "bot-stopped-speaking": stage.classList.remove("speaking"); break;
    case "bot-interrupted": stage.classList.remove("speaking"); break;
    case "bot-ready": messages.settle("worker-restart"); break;
    case "error": messages.error(data.message, data.code); break;
    case "identity": refreshIdentity(); break;
    case "quality": panel.rate(data.pictures_per_second); break;
    case "metrics": panel.update(data); break;
  }
});

/** A watcher has no event channel: the same figures from the status. */
async function askStatus() {
  const status = await request("api/status").then((response) => response.json()).catch(() => null);
  if (!status || link.state !== "watching") return;
  panel.update(status.figures);
  stage.classList.toggle("speaking", status.speaking);
  if (status.identity !== identity) refreshIdentity();
}

setInterval(async () => {
  if (link.state === "waiting") {
    const seconds = Math.max(0, Math.ceil((retryAt - performance.now()) / 1000));
    $("connect").textContent = seconds ? `Try now (${seconds} s)` : "Try now";
  }
  if (link.state === "watching") askStatus();
  if (link.connection) panel.decoded((await link.connection.progress()).decoded);
}, 1000);

function showSize(width, height) {
  if (width && height) stage.style.setProperty("--ratio", String(width / height));
}

// -- microphone

async function listDevices() {
  const found = await microphones();
  const chosen = $("device").value;
  $("device").replaceChildren(new Option("System default", ""), ...found.map(({ id, label }) => new Option(label, id)));
  $("device").value = found.some(({ id }) => id === chosen) ? chosen : "";
}

async function startMicrophone() {
  try {
    microphone = await Microphone.open($("device").value);
  } catch (error) {
    messages.error(error.message, "microphone");
    return;
  }
  microphone.addEventListener("ended", () => {
    stopMicrophone();
    messages.error("The microphone is gone.", "microphone");
  });
  messages.settle("microphone");
  $("microphone").setAttribute("aria-pressed", "true");
  microphone.meter((level) => { $("level").style.transform = `scaleX(${level.toFixed(3)})`; });
  await link.connection?.speak(microphone.track);
  await listDevices();
}

function stopMicrophone() {
  if (!microphone) return;
  microphone.close();
  microphone = null;
  link.connection?.speak(null).catch(() => {});
  $("microphone").setAttribute("aria-pressed", "false");
  $("level").style.transform = "";
}

// -- sound of the avatar

function mute(muted) {
  audio.muted = muted;
  $("mute").setAttribute("aria-pressed", String(muted));
}

function setVolume(volume) {
  audio.volume = volume;
  if (volume > 0) mute(false);
}

// -- sound files

async function play(file) {
  waiting = null;
  if (speech) await stopSpeech();
  const mine = speech = new Speech(file);
  mine.addEventListener("change", showSpeech);
  showSpeech();
  try {
    await mine.say();
  } catch (error) {
    messages.error(error.message, "speech");
  }
  if (speech === mine) speech = null;
  showSpeech();
}

async function stopSpeech() {
  const heard = speech && speech.state !== "preparing";
  speech?.stop();
  [speech, waiting] = [null, null];
  showSpeech();
  if (heard) await interrupt();
}

function showSpeech() {
  const file = speech?.file ?? waiting;
  $("playing").hidden = !file;
  if (!file) return;
  const when = link.state === "watching" ? "when a seat is free" : "when you are connected";
  const state = speech
    ? { preparing: `Reading ${file.name}`, queued: `${file.name} waits until it can be spoken`, started: `Speaking ${file.name}` }[speech.state]
    : `${file.name} will be spoken ${when}`;
  if ($("playing-state").textContent !== state) $("playing-state").textContent = state;
  $("playing-stop").textContent = speech ? "Stop" : "Remove";
  $("playing-progress").hidden = !speech;
  showProgress();
}

function showProgress() {
  const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
  $("playing-progress").value = speech?.seconds ? speech.played / speech.seconds : 0;
  $("playing-time").textContent = speech?.seconds ? `${clock(speech.played)} / ${clock(speech.seconds)}` : "";
}
setInterval(() => speech && showProgress(), 200);

const interrupt = () => request("api/interrupt", { method: "POST" }).catch((error) => messages.error(error.message));

// -- portraits

async function swap(file, face = 0) {
  $("faces").hidden = true;
  $("portrait-name").textContent = `Checking ${file.name}…`;
  try {
    const picture = await prepare(file);
    const path = `api/identity${face ? `?face=${face}` : ""}`;
    await request(path, { method: "POST", headers: { "Content-Type": picture.type }, body: picture });
    messages.settle("portrait");
    messages.note(`${file.name} is the avatar now.`);
    await refreshIdentity();
  } catch (error) {
    if (error.code === "several-faces") await askForFace(file, error);
    else messages.error(error.message, "portrait");
  }
  $("portrait-name").textContent = "Choose another portrait…";
}

async function askForFace(file, { faces, boxes }) {
  messages.settle("portrait");
  const buttons = await faceButtons(file, faces, boxes, (face) => swap(file, face));
  $("faces-title").textContent = `${file.name} has ${faces} faces. Whose portrait is it?`;
  $("faces-list").replaceChildren(...buttons);
  $("faces").hidden = false;
  buttons[0]?.focus();
}

async function restoreFirst() {
  try {
    await request("api/identity", { method: "DELETE" });
    messages.note("The first portrait is the avatar again.");
    await refreshIdentity();
  } catch (error) {
    messages.error(error.message, "portrait");
  }
}

/** Show who is the avatar now, where the page shows it without video. */
async function refreshIdentity() {
  const shown = await request("api/identity").then((response) => response.json()).catch(() => null);
  if (!shown) return;
  $("first").hidden = shown.first;
  if (identity !== shown.identity) $("rest").src = `api/portrait?${shown.identity}`;
  identity = shown.identity;
}

// -- files

function take(file) {
  if (!file) return;
  messages.settle("file");
  if (isPicture(file)) {
    swap(file);
  } else if (file.type && !/^(audio|video)\//.test(file.type)) {
    messages.error(`${file.name} is neither a picture nor a sound.`, "file");
  } else if (link.state === "live") {
    play(file);
  } else {
    waiting = file;
    showSpeech();
  }
}

// -- wiring

$("connect").onclick = () => (link.state === "waiting" ? link.hurry() : (messages.clear("error"), link.start()));
for (const id of ["disconnect", "give-up"]) {
  $(id).onclick = () => {
    if (speech) stopSpeech();
    link.stop();
    $("connect").focus();
  };
}
$("interrupt").onclick = interrupt;
$("microphone").onclick = () => (microphone ? stopMicrophone() : startMicrophone());
$("device").onchange = () => microphone && (stopMicrophone(), startMicrophone());
$("mute").onclick = () => mute(!audio.muted);
$("volume").oninput = () => setVolume(Number($("volume").value));
$("playing-stop").onclick = () => stopSpeech();
$("first").onclick = restoreFirst;
for (const id of ["sound", "portrait"]) {
  $(id).onchange = () => { take($(id).files[0]); $(id).value = ""; };
}

$("full-screen").hidden = !(document.fullscreenEnabled || video.webkitEnterFullscreen);
$("full-screen").onclick = () => {
  if (document.fullscreenElement) document.exitFullscreen();
  else if (document.fullscreenEnabled) stage.requestFullscreen();
  else video.webkitEnterFullscreen(); // an iPhone shows nothing else than a video alone
};
document.onfullscreenchange = () => $("full-screen").setAttribute("aria-pressed", String(Boolean(document.fullscreenElement)));
$("picture-in-picture").hidden = !document.pictureInPictureEnabled;
$("picture-in-picture").onclick = () => {
  const changed = document.pictureInPictureElement ? document.exitPictureInPicture() : video.requestPictureInPicture();
  changed.catch((error) => messages.error(`Picture in picture is not possible: ${error.message}`));
};

video.onresize = () => showSize(video.videoWidth, video.videoHeight);
$("rest").onload = () => video.srcObject || showSize($("rest").naturalWidth, $("rest").naturalHeight);
showSize($("rest").naturalWidth, $("rest").naturalHeight);

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

addEventListener("online", () => link.hurry());
addEventListener("visibilitychange", () => document.hidden || link.hurry());
addEventListener("pagehide", () => link.stop());
refreshIdentity();
say.ask();
$("connect").disabled = false; // a click before this line would be lost

// The token is in a cookie by now; in the address it would be in bookmarks and screenshots.
if (new URLSearchParams(location.search).has("token")) history.replaceState(null, "", location.pathname);
