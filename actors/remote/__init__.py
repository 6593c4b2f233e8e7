"""Actors of other processes: who is served, refs, and the messages that travel."""
