"""A server that speaks MEGA's protocol: real HTTP on loopback, its state in memory.

    reference.py    what a client of MEGA enciphers and derives, written for the tests alone
    state.py        accounts, nodes, shares, links and the feed
    server.py       the API and the storage servers over HTTP, and what the tests make them do wrong

Clients that this project did not write prove it: tests/services/mega/test_clients.py.
"""
