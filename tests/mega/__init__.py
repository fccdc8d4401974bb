"""Files in a MEGA account: ciphers, links, the API, the tree, mounts; against tests/services/mega."""
