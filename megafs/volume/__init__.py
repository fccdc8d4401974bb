"""One volume on this machine: make it, open it; its key header, its state directory."""
