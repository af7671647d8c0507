"""Caches of keys and values that outlive the request they were computed for."""
