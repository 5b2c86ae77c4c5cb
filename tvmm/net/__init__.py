"""The host's side of network devices: taps, links, and undoing what was done to them. The one user of pyroute2."""
