"""The tree of one volume: pure, synchronous operations over the SQLite replica."""
