"""Objects in a folder of a Dropbox account."""
