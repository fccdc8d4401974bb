"""A service that speaks Google Drive's API v3, in memory: state.py, query.py, server.py."""
