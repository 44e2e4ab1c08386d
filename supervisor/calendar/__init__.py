"""What the schedule makes of the wall clock: which period holds, and when the next ones begin."""
