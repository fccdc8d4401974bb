"""One live mount: the FUSE adapter, its tasks, the control socket, the daemon."""
