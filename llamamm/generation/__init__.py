"""Prompts in, words out. Lesson 08; sounds in, words out in lesson 12; prompts with pictures and sounds in lesson 14.

Read in this order: sampling, generate, beginning, prompts, guarded, session; transcribe; speculation, drafts
(lesson 19).
"""
