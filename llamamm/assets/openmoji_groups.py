"""Drawings of OpenMoji in twelve groups by what they show: a test of whether features know what a thing is.

Only whole things are in, no faces, signs or hearts, which their outline gives away. The names are `assets.openmoji`'s.
Used from notebook 11 on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llamamm.assets.openmoji import Pictures
from llamamm.errors import InputError

GROUPS = {
    "mammals": "dog, poodle, cat, horse, cow, pig, boar, goat, ewe, ram, ox, water buffalo, bison, camel, elephant, "
               "mammoth, rhinoceros, hippopotamus, rabbit, mouse, rat, hedgehog, tiger, leopard, giraffe, llama, "
               "zebra, deer, donkey, kangaroo",
    "birds": "rooster, eagle, duck, swan, goose, owl, flamingo, peacock, parrot, dove, turkey, penguin, bird, black "
             "bird, baby chick, dodo, phoenix",
    "sea": "fish, tropical fish, blowfish, shark, dolphin, whale, spouting whale, orca, octopus, crab, shrimp, "
           "squid, lobster, jellyfish, seal, oyster",
    "insects": "ant, honeybee, bug, butterfly, beetle, lady beetle, cricket, cockroach, spider, scorpion, mosquito, "
               "fly",
    "fruit": "red apple, green apple, banana, pear, peach, cherries, strawberry, lemon, lime, grapes, pineapple, "
             "mango, tangerine, kiwi fruit, watermelon, melon, blueberries, tomato, coconut, avocado",
    "dishes": "pizza, hamburger, hot dog, taco, sandwich, burrito, pancakes, waffle, bread, croissant, doughnut, "
              "cookie, bagel, pretzel, baguette bread, flatbread, stuffed flatbread, sushi, cupcake, pie",
    "road": "automobile, taxi, bus, ambulance, fire engine, police car, delivery truck, tractor, minibus, "
            "articulated lorry, racing car, trolleybus, pickup truck, sport utility vehicle, auto rickshaw, "
            "motorcycle, motor scooter, bicycle",
    "clothes": "t-shirt, jeans, dress, coat, kimono, gloves, scarf, socks, shorts, bikini, necktie, sari, lab coat, "
               "safety vest, running shirt, briefs, one-piece swimsuit, woman's clothes",
    "music": "guitar, violin, trumpet, saxophone, drum, accordion, banjo, flute, musical keyboard, long drum, harp, "
             "trombone, maracas, postal horn",
    "houses": "house, house with garden, derelict house, hut, hospital, bank, hotel, school, factory, castle, "
              "japanese castle, church, mosque, synagogue, hindu temple, office building, post office, convenience "
              "store, department store, stadium",
    "tools": "hammer, wrench, screwdriver, axe, pick, nut and bolt, carpentry saw, scissors, kitchen knife, hook, "
             "ladder, hammer and wrench, clamp, shovel, broom, plunger, paintbrush, razor",
    "sports": "soccer ball, baseball, softball, basketball, volleyball, american football, rugby football, tennis, "
              "bowling, field hockey, ice hockey, lacrosse, ping pong, badminton",
}  # fmt: skip


def in_groups(*pictures: Pictures) -> tuple[Tensor, Tensor, list[str]]:
    """The grouped drawings among some pictures: pixels uint8 (N, 3, 64, 64), group numbers (N,), names.

    Raises InputError where one is not among them.
    """
    place = {name: (part, i) for part in pictures for i, name in enumerate(part.names)}
    group_of = {name: n for n, names in enumerate(GROUPS.values()) for name in names.split(", ")}
    if missing := sorted(set(group_of) - set(place)):
        raise InputError(f"{len(missing)} of the {len(group_of)} grouped drawings are not among these pictures, such "
                         f"as {missing[0]!r}")
    pixels = torch.stack([part.pixels[i] for part, i in map(place.get, group_of)])
    return pixels, torch.tensor(list(group_of.values())), list(group_of)
