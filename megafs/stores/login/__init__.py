"""Logins: who we are to a service, kept on this machine and renewed before it ends."""
