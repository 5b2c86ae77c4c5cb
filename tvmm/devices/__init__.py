"""Register models of devices: synchronous, without descriptors, told offsets and not addresses."""
