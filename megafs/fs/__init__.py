"""POSIX semantics of one running mount; no FUSE types."""
