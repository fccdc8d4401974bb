"""A server that speaks Dropbox's API v2, after its public specification and SDK.

    with DropboxService() as service:
        service.url                     # http://127.0.0.1:PORT: all of Dropbox's hosts in one
        service.account.quota = 1 << 20

`account.py` is an account in memory, `routes.py` the calls, `server.py` HTTP and tokens.
"""
