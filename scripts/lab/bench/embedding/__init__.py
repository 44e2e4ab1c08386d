"""What the embedding service costs and gains, beside the bare server that it asks."""
