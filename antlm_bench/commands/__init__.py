"""One file per verb: a straight line from inputs to a run, a table or a file."""
