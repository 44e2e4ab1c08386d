"""Running servers: processes, and the one way to talk to them."""
