// Requests to the server, and the WebRTC connection: picture and sound from the avatar, and for who has a seat a
// microphone to it and its events.

const SEAT = "avatard-seat"; // in sessionStorage: the connection of this tab, which its reload replaces at once
const CONNECT_MS = 15000;
const GATHER_MS = 500;

/** What went wrong, in words for the person in front of the page, and as a code. */
export class RequestError extends Error {
  constructor(message, { status = 0, retryAfter = 0, ...fields } = {}) {
    super(message);
    Object.assign(this, { ...fields, status, retryAfter });
  }
}

/** The answer to a request. Raises RequestError with the fields of the server's error. */
export async function request(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new RequestError("The server cannot be reached.", { code: "unreachable" });
  }
  if (response.ok) return response;
  const { error, ...fields } = await response.json().catch(() => ({}));
  const text = error ?? `${response.status} ${response.statusText}`;
  throw new RequestError(`The server answers: ${text}.`.replace(/\.\.$/, "."), {
    ...fields,
    status: response.status,
    retryAfter: Number(response.headers.get("Retry-After") ?? 0),
  });
}

/** The STUN and TURN servers of this server; none where it does not tell. */
async function iceServers() {
  const answer = await request("api/ice").then((response) => response.json()).catch(() => null);
  return answer?.ice_servers ?? [];
}

const owned = new Set();

/** Keep the name of a connection for this tab's lifetime; false if another tab has it, of which this is a copy. */
function own(name) {
  if (owned.has(name) || !navigator.locks) return Promise.resolve(true);
  return new Promise((resolve) => {
    navigator.locks.request(`${SEAT}-${name}`, { ifAvailable: true }, (lock) => {
      resolve(lock !== null);
      if (lock === null) return undefined;
      owned.add(name);
      return new Promise(() => {}); // until the tab ends, also by a crash
    });
  });
}

async function formerSeat() {
  const name = sessionStorage.getItem(SEAT);
  return name !== null && await own(name) ? name : undefined;
}

export class Connection extends EventTarget {
  #peer = new RTCPeerConnection();
  #id = null; // of a talking connection
  #resource = null; // of a watching one
  #early = [];
  #microphone = null;
  #closed = false;
  video = new MediaStream();
  audio = new MediaStream();

  /** Whether it has a seat, and so may speak and is told events. */
  get talks() {
    return this.#microphone !== null;
  }

  /** Take a seat; resolves when media flow. Raises RequestError: with status 503 where all are taken. */
  async talk() {
    this.#microphone = this.#peer.addTransceiver("audio", { direction: "sendrecv" });
    this.#peer.addTransceiver("video", { direction: "recvonly" });
    const channel = this.#peer.createDataChannel("events");
    channel.onmessage = ({ data }) => this.dispatchEvent(new CustomEvent("event", { detail: JSON.parse(data) }));
    channel.onclose = () => this.#lose("The server ended the connection.");
    this.#peer.onicecandidate = ({ candidate }) => candidate && this.#trickle(candidate);
    await this.#gather();
    const connected = this.#connected();
    const { sdp, type } = this.#peer.localDescription;
    const response = await request("api/offer", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ sdp, type, pc_id: await formerSeat() }),
    });
    const answer = await response.json();
    this.#id = answer.pc_id;
    sessionStorage.setItem(SEAT, answer.pc_id);
    await own(answer.pc_id);
    this.#early.splice(0).forEach((candidate) => this.#trickle(candidate));
    await this.#peer.setRemoteDescription({ sdp: answer.sdp, type: answer.type });
    await connected;
  }

  /** Watch only (WHEP); resolves when media flow. */
  async watch() {
    for (const kind of ["audio", "video"]) this.#peer.addTransceiver(kind, { direction: "recvonly" });
    await this.#gather();
    const connected = this.#connected();
    await this.#gathered();
    const headers = { "Content-Type": "application/sdp" };
    const response = await request("whep", { method: "POST", headers, body: this.#peer.localDescription.sdp });
    this.#resource = new URL(response.headers.get("Location"), response.url);
    if (this.#closed) this.#hangUp();
    await this.#peer.setRemoteDescription({ sdp: await response.text(), type: "answer" });
    await connected;
  }

  /** Send this microphone track, or nothing. */
  async speak(track) {
    await this.#microphone?.sender.replaceTrack(track);
  }

  /** Counts up as long as pictures arrive: those decoded, or while the page is hidden the packets of all media. */
  async progress() {
    const reports = [...(await this.#peer.getStats()).values()].filter(({ type }) => type === "inbound-rtp");
    const decoded = reports.find(({ kind }) => kind === "video")?.framesDecoded ?? 0;
    return { decoded, received: reports.reduce((sum, { packetsReceived }) => sum + packetsReceived, 0) };
  }

  close() {
    this.#closed = true;
    this.#hangUp();
    this.#peer.close();
  }

  #hangUp() {
    if (this.#resource) fetch(this.#resource, { method: "DELETE", keepalive: true }).catch(() => {});
    this.#resource = null;
  }

  #lose(reason) {
    if (!this.#closed) this.dispatchEvent(new CustomEvent("lost", { detail: reason }));
  }

  #connected() {
    const peer = this.#peer;
    peer.ontrack = ({ track }) => this[track.kind].addTrack(track);
    const connected = new Promise((resolve, reject) => {
      const noPath = "No network path to the server (ICE failed). Behind a firewall it needs a TURN server.";
      setTimeout(() => reject(new RequestError(noPath, { code: "ice" })), CONNECT_MS);
      peer.onconnectionstatechange = () => {
        if (peer.connectionState === "connected") resolve();
        if (peer.connectionState !== "failed") return;
        reject(new RequestError(noPath, { code: "ice" }));
        this.#lose("The network path to the server was lost.");
      };
    });
    connected.catch(() => {}); // when the offer is refused nobody waits for it
    return connected;
  }

  /** Describe this side, and begin to look for its addresses. */
  async #gather() {
    this.#peer.setConfiguration({ iceServers: await iceServers() });
    await this.#peer.setLocalDescription();
  }

  /** All ICE candidates are known, or enough of them. */
  #gathered() {
    const peer = this.#peer;
    return new Promise((resolve) => {
      setTimeout(resolve, GATHER_MS);
      peer.onicegatheringstatechange = () => peer.iceGatheringState === "complete" && resolve();
    });
  }

  #trickle(candidate) {
    if (this.#id === null) {
      this.#early.push(candidate);
      return;
    }
    request("api/offer", {
      method: "PATCH",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ pc_id: this.#id, candidates: [candidate.toJSON()] }),
    }).catch(() => {}); // a candidate more or less: the connection state tells whether it mattered
  }
}
