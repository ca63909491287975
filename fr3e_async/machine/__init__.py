"""The control machine: every decision of a run as a pure function of events. No clock, no chance, no files, no Ray."""
