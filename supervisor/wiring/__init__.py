"""How the rooms are put together: a module for each, called by the composition root."""
