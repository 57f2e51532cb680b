"""The Llama: text to ids, ids to scores. Lessons 01 to 06.

Read in this order: tokenizer_settings, added_tokens, merges, tokenizer_files, tokenizer, chat_template, chat (01);
layers (02); rope (03); masks, attention (04); cache (05); config_keys, config, model (06). pace keeps decoding fast
where another program has taken a core; tensor_parallel spreads a model over processes (19); tokenizer_gguf writes what
llama.cpp reads.
"""
