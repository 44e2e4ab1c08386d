"""How a server lives and dies: engines, their command lines, and the care of their processes."""
