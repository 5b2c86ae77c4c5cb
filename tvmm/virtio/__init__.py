"""Virtio 1.3 devices: transports, the core that they share, and the device types."""
