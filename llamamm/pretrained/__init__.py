"""From a name to a model that answers, and back into a folder. Lesson 07; towers in lessons 11 and 12.

Read in this order: locate, load, split, towers, packed, save, compose, skill, ready, gguf_export. The only
room below train that knows every family of models.
"""
