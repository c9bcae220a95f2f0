"""Rooms on many machines: each replica is a daemon, and an ingress before them knows which room is where.

`directory` (where rooms are, and where the next one goes) and `autoscaling` (how many replicas there should be) are
pure. `watch` asks the replicas, `ingress` decides who gets a request and `relay` passes it on, `daemon` runs the daemon
of a replica, and `app` is the Ray Serve application. Only `app` imports Ray.
"""
