"""What the store of vectors costs beside its engine, and how well its index finds."""
