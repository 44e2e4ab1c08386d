"""What operators read: log events and the history of switches, fed by events."""
