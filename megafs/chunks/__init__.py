"""File bytes as sealed chunks, many to a pack."""
