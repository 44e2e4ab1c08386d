"""What the runners share: servers, loads, processor time, and the command line."""
