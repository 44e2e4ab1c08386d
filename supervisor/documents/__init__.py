"""Documents: read, divided, embedded, stored, and found again."""
