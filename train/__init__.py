"""Make a reader: losses, stages, and the one loop that runs them."""
