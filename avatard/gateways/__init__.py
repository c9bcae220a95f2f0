"""Ways in and out of the daemon: HTTP and the page, WebRTC, WebSocket, ZeroMQ, local sound."""
