"""StateDirectory that keep objects; ciphertext only, no access to our keys."""
