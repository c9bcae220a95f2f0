"""The networks and the mathematics; knows nothing of sockets."""
