"""How much memory a model takes: headers, needs, what fits."""
