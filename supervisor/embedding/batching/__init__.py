"""Pieces of many callers in batches, as large as their server takes them at one go."""
