"""Split computing for edge inference: head on the device, tail on a server, few bytes between."""
