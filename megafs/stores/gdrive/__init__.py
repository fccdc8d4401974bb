"""Objects in a folder of Google Drive."""
