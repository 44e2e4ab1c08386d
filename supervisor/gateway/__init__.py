"""What clients see: the reserved routes, the relay to the live backend, and every error answer."""
