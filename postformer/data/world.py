"""The words of a diary's world: people, towns, pets and things. Facts and small talk share them, so that no word gives a fact away.

Jobs, colours and instruments begin with a consonant, since sentences put "a" before them.
"""

import random
from collections.abc import Sequence


def words(text: str) -> list[str]:
    """The words of a text; `_` stands for a space in one."""
    return [word.replace("_", " ") for word in text.split()]


GIVEN = words("""
Ada Albert Alma Anton Astrid August Beatrix Bruno Carla Caspar Celia Clemens Cora Damian Dora Edgar Edith Egon Elisa Emil Erna
Esther Fabian Felix Flora Florian Frida Georg Gerda Gustav Hanna Harald Hedwig Helena Henrik Hilda Hugo Ida Ingrid Irma Ivo
Jakob Jana Jasper Johanna Jonas Judith Julius Karin Kaspar Klara Konrad Lara Leo Leonie Linus Lotte Ludwig Luise Magnus Malte
Margit Marlene Martha Mathis Max Meta Mila Moritz Nadja Nele Niklas Nora Norbert Olga Oskar Otto Paula Pauline Philip Quirin
Ralf Renate Richard Rita Robert Romy Rosa Rudolf Ruth Sabine Samuel Selma Silvia Simon Sonja Stefan Tamara Thea Theodor Tilda
Tobias Ulrich Ursula Valentin Vera Viktor Viola Walter Wanda Werner Wilma Xaver Yvonne
""")
FAMILY = words("""
Abel Adler Arnold Bauer Baumann Beck Berger Bergmann Binder Brandt Braun Brenner Busch Decker Dorn Ebert Eder Engel Fabel Falk
Feldmann Fink Fischer Frank Franke Fuchs Geiger Graf Gruber Haas Hahn Hansen Hartmann Heller Herzog Hofer Holm Horn Huber Jansen
Kaiser Keller Kern Klein Kofler Kramer Krause Kuhn Lang Lehner Lindner Lorenz Maier Marek Marx Mohr Moser Neumann Novak Pichler
Pohl Reiter Richter Ritter Roth Sander Sauer Schmid Seidel Simmer Sommer Stein Steiner Sturm Thaler Unger Vogel Wagner Walch
Weber Winkler Winter Wolf Ziegler
""")
TOWNS = words("""
Aarhus Antwerp Arles Basel Bergen Bilbao Bologna Bordeaux Bremen Bristol Brno Bruges Cadiz Cork Dresden Dublin Dundee Evora
Exeter Ferrara Galway Gdansk Geneva Genoa Ghent Girona Graz Halle Hobart Innsbruck Izmir Kassel Kiel Krakow Leeds Leipzig Leuven
Lille Linz Lisbon Lucerne Lugano Lund Lyon Malaga Malmo Marburg Metz Nancy Nantes Narvik Odense Oslo Padua Parma Perth Pilsen
Porto Ravenna Riga Rostock Rouen Salerno Seville Siena Split Tartu Trento Trieste Turin Turku Umbria Utrecht Valence Verona
Vilnius Weimar York Zadar
""")
PETS = words("""
Amber Argos Bandit Basil Biscuit Blackie Brownie Button Caesar Caramel Clover Cocoa Cookie Domino Dusty Fidget Fluff Freckle
Ginger Gizmo Hazel Jasmine Juno Kiwi Lucky Mango Maple Marble Merlin Midnight Mistral Mocha Muffin Nemo Nugget Nutmeg Olive
Pablo Pepper Pickle Pixel Plum Poppy Pretzel Pumpkin Quince Raisin Rascal Rocket Rufus Rusty Saffron Scout Shadow Smokey
Snowball Socks Sparrow Storm Sugar Taffy Tango Thistle Toffee Topsy Truffle Turbo Velvet Waffle Whiskey Willow Ziggy Zorro
""")
JOBS = words("""
baker barber beekeeper bookseller brewer bricklayer butcher carpenter chemist clockmaker cobbler cook dentist driver farmer
fisherman florist gardener glazier goldsmith guard judge lawyer librarian locksmith mason mechanic midwife miller miner nurse
painter pharmacist photographer pilot plumber porter potter printer roofer sailor sculptor surgeon surveyor tailor teacher
translator typesetter vet waiter weaver welder
""")
COLOURS = words("""
beige black blue brown cream golden green grey pink purple red scarlet silver turquoise white yellow
""")
THINGS = words("""
basket bathtub bench bicycle blanket bookcase bowl bucket cabinet camera candlestick canoe carpet clock coat cradle cupboard
curtain desk drill fan flute globe guitar hammock hat helmet jug kettle ladder lamp lantern mirror mug piano pillow plate radio
rucksack saddle scarf shelf sledge sofa stool stove suitcase table teapot telescope tent toaster trunk typewriter vase violin
wardrobe wheelbarrow whistle
""")
DISHES = words("""
aubergine beetroot_soup bread_soup buckwheat cabbage_rolls cauliflower cheesecake cherry_cake chestnuts couscous curry dumplings
fish_soup goulash gnocchi lasagne leek_tart lentils meatballs mushrooms mussels noodles onion_tart pancakes paella pea_soup
pizza plum_cake polenta potato_salad pumpkin_soup ratatouille ravioli risotto roast_duck sauerkraut schnitzel shepherds_pie
spinach_pie strudel trout walnut_cake
""")
INSTRUMENTS = words("""
banjo bassoon cello clarinet cornet drums fiddle flute guitar harmonica harp horn lute lyre mandolin piano recorder saxophone
tambourine trombone trumpet tuba viola violin xylophone zither
""")
MONTHS = words("""
January February March April May June July August September October November December
""")
WHERE = words("""
behind under inside next_to
""")
SPOTS = words("""
flower_pot letter_box water_barrel garden_bench bird_house door_mat loose_brick wood_pile rain_pipe old_bell stone_lion
tool_shed milk_can window_box fig_tree
""")
HIDING = [f"{where} the {spot}" for where in WHERE for spot in SPOTS]
DAYS = [f"{day} {month}" for month in MONTHS for day in range(1, 29)]
BOUGHT = [f"{colour} {thing}" for colour in COLOURS for thing in THINGS]
NUMBERS = [str(n) for n in range(1000, 10000)]


def pick(rng: random.Random, pool: Sequence[str]) -> str:
    """One of the pool; the same for the same seed under every version of Python."""
    return pool[int(rng.random() * len(pool))]


def people(rng: random.Random, count: int) -> list[str]:
    """`count` whole names, none twice. Raises ValueError when there are not so many."""
    most = len(GIVEN) * len(FAMILY)
    if not 1 <= count <= most:
        raise ValueError(f"people: expected 1 to {most:,}, got {count:,}")
    return [f"{GIVEN[n % len(GIVEN)]} {FAMILY[n // len(GIVEN)]}" for n in places(rng, most, count)]


def places(rng: random.Random, size: int, count: int) -> list[int]:
    """`count` different numbers below `size`, in random order."""
    order: dict[int, int] = {}
    for i in range(count):
        j = i + int(rng.random() * (size - i))
        order[i], order[j] = order.get(j, j), order.get(i, i)
    return [order[i] for i in range(count)]
