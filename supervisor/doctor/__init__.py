"""`llama-supervisor doctor`: what is here, what is wrong with it, and what to do about it."""
