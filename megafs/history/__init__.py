"""Earlier states of a volume: moments in time, earlier trees, what changed between them."""
