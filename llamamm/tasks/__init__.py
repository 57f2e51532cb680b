"""Questions with right answers, to learn from and to be measured on. Lesson 14.

Read in this order: items, senses.
"""
