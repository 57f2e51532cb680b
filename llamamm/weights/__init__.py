"""File formats and names of weights; knows the text Llama alone. Lesson 07; the towers' files in lessons 11, 12 and 15.

Read in this order: tensors, checkpoint, names, loading, saving, hub; parts (19); other names: tower_names,
mllama_names; other formats: gguf, gguf_writer, onnx_file, ctranslate2_file, whisper_files.
"""
