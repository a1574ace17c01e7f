"""The break-it lab: real faults planted into real trainings, and what `diagnose` makes of them.

A fault is a context manager that changes the program from outside while `minisegnet.train` runs.
Neither the flags nor the run folder name it: it can only be found by what was measured.
"""
