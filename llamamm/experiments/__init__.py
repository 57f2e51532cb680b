"""A question answered by training something small.

Read in this order: retrieval (lesson 11), word_recognition (12), fusion_ways, fusion_record and fusion_looks (13),
small_multimodal (14), receipts (15); and what `senses` is made and measured by: release_data, release, release_card
(14, 16).
"""
