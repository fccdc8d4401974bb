"""megafs: end-to-end-encrypted cloud storage, mounted as a local directory."""

__version__ = "0.1.0"
