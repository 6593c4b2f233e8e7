"""Nodes in processes and faults between them, for tests; :mod:`openoutcry.actors.testing` is the pytest plugin."""
