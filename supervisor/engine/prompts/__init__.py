"""Prompts that outlive their server."""
