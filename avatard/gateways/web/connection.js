// The duplex WebRTC connection: picture and sound from the avatar, a microphone to it, events both ways.

/** What went wrong, in words for the person in front of the page. */
export class ConnectionError extends Error {}

/** The text of an error answer, and what to do about it. */
async function complaint(response) {
  const body = await response.json().catch(() => ({}));
  const said = body.error ?? response.statusText;
  if (response.status === 503) {
    const wait = response.headers.get("Retry-After");
    return `The server is full or starting: ${said}${wait ? ` (in about ${wait} s)` : ""}.`;
  }
  if (response.status === 401) return "This server asks for a token: open the page with ?token=… at the end of its address.";
  return `The server refused: ${said}`;
}

export async function request(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new ConnectionError("The server cannot be reached.");
  }
  if (!response.ok) throw new ConnectionError(await complaint(response));
  return response.json();
}

export class Connection extends EventTarget {
  #peer = new RTCPeerConnection();
  #id = null;
  #early = [];
  #microphone;

  /** Connect; resolves when picture and sound flow. */
  async open() {
    const peer = this.#peer;
    const stream = new MediaStream();
    this.#microphone = peer.addTransceiver("audio", { direction: "sendrecv" });
    peer.addTransceiver("video", { direction: "recvonly" });
    const channel = peer.createDataChannel("events");
    channel.onmessage = ({ data }) => {
      const event = JSON.parse(data);
      this.dispatchEvent(new CustomEvent("event", { detail: event }));
    };
    this.send = (message) => channel.readyState === "open" && channel.send(JSON.stringify(message));
    peer.ontrack = ({ track }) => {
      stream.addTrack(track);
      this.dispatchEvent(new CustomEvent("track", { detail: { track, stream } }));
    };
    peer.onicecandidate = ({ candidate }) => candidate && this.#trickle(candidate);
    const connected = new Promise((resolve, reject) => {
      peer.onconnectionstatechange = () => {
        if (peer.connectionState === "connected") resolve();
        if (peer.connectionState === "failed") {
          reject(new ConnectionError("No network path to the server (ICE failed). Behind a firewall it needs a TURN server."));
          this.dispatchEvent(new Event("lost"));
        }
      };
    });
    await peer.setLocalDescription();
    const { sdp, type } = peer.localDescription;
    const answer = await request("api/offer", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ sdp, type }),
    });
    this.#id = answer.pc_id;
    this.#early.splice(0).forEach((candidate) => this.#trickle(candidate));
    await peer.setRemoteDescription({ sdp: answer.sdp, type: answer.type });
    await connected;
  }

  /** Send this microphone track, or nothing. */
  speak(track) {
    return this.#microphone.sender.replaceTrack(track);
  }

  /** Frames decoded so far. */
  async framesDecoded() {
    for (const report of (await this.#peer.getStats()).values()) {
      if (report.type === "inbound-rtp" && report.kind === "video") return report.framesDecoded ?? 0;
    }
    return 0;
  }

  close() {
    this.#peer.close();
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
