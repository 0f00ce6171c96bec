"""Ways to look inside a finished run: what it writes, what each token of a text costs it, what its layers look at."""
