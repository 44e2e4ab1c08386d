"""What files say: read by a process that can be killed, has no network, and little memory."""
