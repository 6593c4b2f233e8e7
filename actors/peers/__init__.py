"""Who is there and linked: the directory, and a link to each other node."""
