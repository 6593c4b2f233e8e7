"""A node of the exchange is a group of these actors."""
