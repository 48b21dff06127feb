"""Licence seats: who gives them, and how."""
