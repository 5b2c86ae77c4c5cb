"""The guest's screen over the network: the RFB protocol's machine, its encodings and security types, and the server."""
