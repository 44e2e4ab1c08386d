"""The kinds of engine: their flags, their binaries, their abilities."""
