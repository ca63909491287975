"""The method, pure: numbers in, numbers out; no Ray, engine, files, clocks or global random state."""
