"""One file per kind of kernel object. A plain library: nothing in here imports pytest."""
