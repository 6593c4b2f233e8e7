"""What a caller holds of a market: checks at the edge, queries, views, subscriptions."""
