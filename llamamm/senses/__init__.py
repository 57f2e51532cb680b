"""The eye and the ear: pictures and sounds to features. Lessons 11 and 12.

Read in this order: config, encoder; images, image_processor, vision; sound_file, waves, mel, audio, whisper_decoder;
contrastive. config_keys: what files say, read or refused.
"""
