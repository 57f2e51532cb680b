"""Makes what is committed: runs the lessons, keeps quotes in step, writes exercises and the README's table.

Read in this order: run, sync, exercises, lessons.
"""
