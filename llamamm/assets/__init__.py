"""Real weights and data: where they come from, how they are made, how they are read.

Read in this order: catalogue, wheels, fetch; then one file for each set of data.
"""
