"""Ranges of packs on the local disk."""
