"""Files in a MEGA account, against the server of tests/services/mega."""
