"""The guest's screen for viewers elsewhere: RFB server, its encodings and security types, and a page for browsers."""
