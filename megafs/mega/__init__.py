"""Files that lie in a MEGA account or behind a MEGA link: read only, and apart from volumes."""
