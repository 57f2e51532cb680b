"""What lessons use: set-up, pictures, exercises that check themselves, your code in the real model.

Read in this order: env, blanks, plots, reference, training, staging, plants, killed, swap, manners, swap_towers,
swaps_verdict, swaps_text, swaps_weights, swaps_senses, swaps_eye, swaps_speech, swaps_seeing, swaps_stages,
swaps_llama32_vision, swaps_evaluation, swaps_safety, swaps_faster, swaps, races; checks/ holds the exercises,
figures/ draws the pictures, build/ makes what is committed.
"""
