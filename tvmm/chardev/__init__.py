"""Character backends: where the bytes of a serial port go to and come from."""
