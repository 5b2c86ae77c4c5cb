"""Disks of a server: the NBD protocol (pure), and the shells that connect, reconnect and start `qemu-nbd`."""
