"""Servers that speak the protocols of services that the tests cannot reach."""
