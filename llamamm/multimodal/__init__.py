"""A Llama with senses: features become tokens among the words. Lessons 13 and 14.

Read in this order: config, cross_attention, bridge, compact, places, model, processor.
"""
