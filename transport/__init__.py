"""Everything of Open Outcry that crosses a process boundary: frames, sockets, the directory, the coordinator."""
