"""Jobs: work that nobody waits for, on a durable queue. Not imported before the first of them."""
