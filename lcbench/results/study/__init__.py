"""Studies: a claim of a paper, the runs that test it, and the verdict."""
