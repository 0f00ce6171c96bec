"""Sweeps: Hydra expands the values and chooses the launcher, every job is a process of its own.

A job that fails costs that job only. What is finished is not computed again, what was interrupted continues, what
failed is tried again with ``retry=true``. ``hydra/launcher=local`` (the default) runs as many jobs at a time as fit
the cores of this machine.

    jobs.py       preparing and running jobs on this machine
    command.py    expanding, launching anywhere, ending
"""
