"""Runs as a page and as figures."""
