"""How good a model is on held-out data, and how fast. Lessons 14 and 16 to 18.

Read in this order: senses, report; answers, intervals; spoken_numbers, normaliser, transcripts; captions; perplexity,
likelihood; figures, measures; seen_tokens, refusal_judge, safety; score_card, card_report, evaluate; the public
harness: harness, harness_command; garak_function; llama_cpp, speed, train_steps, train_speed, harness_speed,
guard_speed, speculation_speed, same_tokens, compile_speed.
"""
