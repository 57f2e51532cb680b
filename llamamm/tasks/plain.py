"""Plain questions that a small chat model should answer, each with the words that are right: "4|four".

A model that has learned to see must not forget them. An answer is right if one of the words is in it, see
`llamamm.evals.measures.holds`: exact match after normalisation, of a word within a sentence. It is generous to long
answers: "not Rome but Paris" is right of France, and of Italy.

The first 20 are those that the card of `senses` has always asked. Used in notebooks 16 and 17.
"""

from __future__ import annotations

PLAIN = (
    ("What is the capital of France?", "paris"), ("What is the capital of Italy?", "rome"),
    ("What is the capital of Japan?", "tokyo"), ("What is two plus two?", "4|four"),
    ("How many days are in a week?", "7|seven"), ("How many months are in a year?", "12|twelve"),
    ("What color is the sky on a clear day?", "blue"), ("What color is grass?", "green"),
    ("What is the opposite of hot?", "cold"), ("What is the opposite of day?", "night"),
    ("Which planet do we live on?", "earth"), ("Which planet is known as the Red Planet?", "mars"),
    ("What is the largest ocean on Earth?", "pacific"), ("Who wrote Romeo and Juliet?", "shakespeare"),
    ("What do bees make?", "honey"), ("Which animal says meow?", "cat"),
    ("What is the chemical symbol for water?", "h2o"), ("In which country are the pyramids of Giza?", "egypt"),
    ("What is frozen water called?", "ice"), ("What language is spoken in Brazil?", "portuguese"),
    # since the first card of every model
    ("What is the capital of Spain?", "madrid"), ("What is the capital of Germany?", "berlin"),
    ("What is the capital of Russia?", "moscow"), ("What is the capital of Egypt?", "cairo"),
    ("What is the capital of the United Kingdom?", "london"), ("What is five plus three?", "8|eight"),
    ("What is ten minus four?", "6|six"), ("What is three times three?", "9|nine"),
    ("What is half of one hundred?", "50|fifty"), ("How many legs does a spider have?", "8|eight"),
    ("How many sides does a triangle have?", "3|three"), ("How many minutes are in an hour?", "60|sixty"),
    ("How many letters are in the English alphabet?", "26"), ("How many wheels does a bicycle have?", "2|two"),
    ("How many years are in a century?", "100|hundred"), ("What is the opposite of up?", "down"),
    ("What is the opposite of big?", "small|little"), ("What is the opposite of left?", "right"),
    ("What is the opposite of open?", "closed|close|shut"), ("What color is a ripe banana?", "yellow"),
    ("What color is fresh snow?", "white"), ("What color do you get by mixing blue and yellow?", "green"),
    ("Which star does the Earth go around?", "sun"), ("What is the largest planet in the solar system?", "jupiter"),
    ("What gas do people need to breathe to stay alive?", "oxygen"), ("What is the chemical symbol for gold?", "au"),
    ("What is the name of the Earth's natural satellite?", "moon"), ("Which animal says moo?", "cow|cows"),
    ("What is a baby dog called?", "puppy|pup"), ("What is a baby cat called?", "kitten"),
    ("Which animal has a long trunk?", "elephant|elephants"), ("What do cows give us to drink?", "milk"),
    ("Which day comes after Monday?", "tuesday"), ("Which month comes after March?", "april"),
    ("Who painted the Mona Lisa?", "leonardo|vinci"), ("What is the tallest mountain on Earth?", "everest"),
    ("Who was the first president of the United States?", "washington"),
    ("Who was the first person to walk on the Moon?", "armstrong"),
    ("On which continent is Kenya?", "africa"), ("What language is spoken in Mexico?", "spanish"),
)  # fmt: skip
