"""The command line's link to a node."""
