"""Decisions, apart from effects: no clock, no I/O; time comes inside the event."""
