"""How good a model is on held-out data, and how fast. Lesson 14.

Read in this order: senses, report, answers, instructions, speed, train_speed.
"""
