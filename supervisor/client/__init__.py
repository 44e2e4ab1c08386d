"""What talks to a running controller over HTTP, for the command line."""
