"""Documents made for tests and measurements."""
