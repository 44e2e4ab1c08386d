"""Documents: divided, embedded, stored, and found again."""
