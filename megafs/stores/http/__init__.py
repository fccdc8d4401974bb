"""HTTP: one session, and the transports below it."""
