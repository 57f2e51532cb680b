"""Real weights and data: where they come from, how they are made, how they are read.

Read in this order: catalogue, wheels, fetch; then the sets of data: splits, corpora, chitchat, openmoji,
openmoji_groups, easy_vqa, spoken_words, espeak; and those that are folders as training reads them: media_folders,
paintings, arcade, sentences, speech.
"""
