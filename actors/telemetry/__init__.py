"""How a node is: conditions, metrics, health, logs, the service manager."""
