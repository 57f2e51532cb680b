"""Llama 3.2 Vision, Meta's own Llama that sees. Lesson 15.

Read in this order: config, tiles, tower, model, processor, memory.
"""
