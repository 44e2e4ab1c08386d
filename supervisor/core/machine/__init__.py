"""What should happen next: states, events, decisions."""
