"""Who leads each market, and what markets there are."""
