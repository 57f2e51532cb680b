"""LoRA: a model tuned with one percent of its numbers, and the adapter files that hold them. Lesson 09.

Read in this order: settings, lora, lean, adapter_config, adapter_files.
"""
