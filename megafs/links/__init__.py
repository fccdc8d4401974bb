"""Links: what one carries and what lies behind it; reading it without a volume."""
