"""The journal: commits, their order, what follows from losing a race, checkpoints."""
