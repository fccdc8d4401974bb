"""Long work on a whole volume: gc, fsck, scrub, restore, salvage and the like."""
