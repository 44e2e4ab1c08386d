"""Who gets a device next, when several models want it: pure functions over a small view."""
