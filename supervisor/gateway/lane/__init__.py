"""The fast lane: a door that answers plain requests by itself, and hands over all others."""
