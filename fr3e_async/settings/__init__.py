"""Settings: read from files and the command line, checked, and explained."""
