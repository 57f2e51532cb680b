"""How good a model is on held-out data, and how fast. Lessons 14 and 17.

Read in this order: senses, report, answers, likelihood; the public harness: harness, harness_command; speed,
train_speed, harness_speed.
"""
