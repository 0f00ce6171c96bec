"""Sweeps: Hydra expands the values and chooses the launcher, every job is a process of its own.

A job that fails costs that job only. What is finished is not computed again, what was interrupted continues, what
failed is tried again with ``retry=true``. ``hydra/launcher=local`` (the default) runs as many jobs at a time as fit
the cores of this machine; ``slurm`` and ``ray`` run them on a cluster, ``hydra/sweeper=optuna`` searches.

    command.py      expanding, launching, ending
    folder.py       a sweep's own folder: what its jobs are, whoever runs them
    launchers.py    where jobs run, and what a search learns of them
    jobs.py         what each job computes, and whether it has to run
    processes.py    running jobs on this machine, a process each
    forked.py       such a process, and the server that it is forked from
    board.py        what a person sees meanwhile
"""
