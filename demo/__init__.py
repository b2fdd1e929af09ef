"""A small site to try Backup Audit on: `make demo`."""
