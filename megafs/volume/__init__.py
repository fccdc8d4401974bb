"""Jobs on a whole volume: make it, open it, its keys."""
