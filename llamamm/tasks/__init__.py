"""Questions with right answers, to learn from and to be measured on. Lessons 14 and 17.

Read in this order: items, senses; then what is asked without pictures and sounds: plain, choices,
instructions; held_out, all sets that a score card asks about.
"""
