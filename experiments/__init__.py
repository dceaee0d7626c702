"""One file an experiment: a question, the command that answers it, and the answer."""
