"""Wrappers at the system-call boundary, for calls that leave nothing behind, and the ledger they write."""
