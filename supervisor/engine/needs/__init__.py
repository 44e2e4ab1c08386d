"""What models need on a device: estimated, stated, learned."""
