"""Where models, runners and KVM are joined: devices in their slots, and the PCI bus."""
