"""What is left of a model's meaning once it is quantised and served."""
