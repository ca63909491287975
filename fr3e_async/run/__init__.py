"""One run from its start to its end: check, connect, train or evaluate, resume, stop."""
