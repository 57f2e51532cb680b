"""A question answered by training something small.

Read in this order: retrieval (lesson 11), word_recognition (12), fusion_ways (13); what the tokens of a picture carry:
drawn_shapes, seen_tokens (14); a small model trained from nothing: small_multimodal; and what the package's own
`senses` is made and measured by: release_data, release, release_card (16).
"""
