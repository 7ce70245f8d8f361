"""`./run.sh bench`: the kit's speed beside that of the usual ways to do the same work, measured in the same minutes."""
