"""Callers' own forms of asking for embeddings, each a thin translation to the one service."""
