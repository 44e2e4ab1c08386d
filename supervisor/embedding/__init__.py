"""The embedding service: texts in, vectors out, in batches that keep the device busy."""
