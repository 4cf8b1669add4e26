"""Training jobs on a Slurm cluster: submission through submitit, what runs inside a job, and what became of it.

``python tools/submit.py --help`` is the way in. Importing this package needs neither Slurm nor submitit, and nothing
heavy: a job must be able to receive signals a moment after its start.
"""
