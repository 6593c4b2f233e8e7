"""Actors that know no exchange: mailboxes, timers, death watch, supervision."""
