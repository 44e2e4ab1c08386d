"""How long tests wait for what must come."""

PATIENCE_S = 60.0
"""Seconds after which something that has not come fails its test: machines do much else meanwhile.

It bounds a failure and measures nothing: what shall come before something else is held against
that.
"""
