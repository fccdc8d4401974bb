"""Stores of objects: drivers, and around them limits, retries and the disk cache; no keys here."""
