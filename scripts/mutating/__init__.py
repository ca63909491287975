"""What scripts/mutate.py is made of: operators, the named faults, the coverage map, and the processes that meet each mutant."""
