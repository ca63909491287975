"""The control machine on a virtual clock: what a run would do on a cluster that one does not have, in seconds instead of days.

    Machine ──commands──► World (engines, verifiers, learner, weights: service times only) ──events──► Machine
       └──────────────── every event with its decisions ─────────────────► Stats ─► Report, labelled "simulation"

The decisions are those of ``machine.machine`` itself; only how long things take is modelled (``service``), and what a prompt
is like (``workload``). Both are measured from a finished run's journal (``calibrate``) or estimated (``roofline``).
The model and what it leaves out: docs/simulator.md.
"""
