"""Makes what is committed: runs the lessons, keeps quotes in step, writes workbooks and the README's table.

Read in this order: run, sync, workbooks, lint with not_yet, lessons.
"""
