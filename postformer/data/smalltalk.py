"""Small talk without end: sentences of a diary that say nothing which is asked for, in the words that facts are told with."""

import random
from collections.abc import Iterator, Sequence

from postformer.data import world
from postformer.data.world import pick

OPENERS = [
    *[""] * 6, "This morning ", "Before breakfast ", "After lunch ", "In the afternoon ", "In the evening ", "Late at night ",
    "On the way home ", "At the market ", "While it rained ", "As so often ", "For once ", "To my surprise ", "Around noon ",
]  # fmt: skip
CLAUSES = """
I talked with {person} about {town} and the price of houses there
{person} told me a long story about a {job} and a {colour} {thing}
I read in the paper that a dog called {pet} had won a prize in {town}
I dreamt of a cat called {pet} that could play the {instrument}
{person} and I wondered what to call a dog, and {pet} was my favourite
a {job} from {town} asked me the way to the station
somebody played the {instrument} next door for {number} minutes
we had {dish}, and {person} said that in {town} they make it better
{person} would not eat the {dish} and I did not ask why
the {job} came about the {thing} and stayed for coffee
I looked at a {colour} {thing} in a window and went on
{person} complained about the {thing} again, and about the weather
I lost my keys and found them {hiding}
{person} says that everybody hides money {hiding}
a letter for {person} lay {hiding}, and nobody knew since when
I counted {number} steps on the way to the mill
the train to {town} was {number} seconds late, as {person} had foretold
{person} sang in the kitchen, badly, and burnt the {dish}
I thought of {town}, where I have not been since I was a child
it rained until {day}, or so it seems to me
the almanac says that on {day} the swallows leave
{person} asked whether I would be away on {day}, and I did not know
I practised the {instrument} a little and gave it up
{person} has read a novel about a {job} who moves to {town}
the wind took the {thing} of {person} over the fence
we spoke about doctors, landlords and teachers, and {person} praised them all
{person} and {other} quarrelled about a {thing} and made up over {dish}
I met {person} and {other} at the fountain; both send greetings
{other} asked after {person}, who has a cold
a wedding party came by, all in {colour}, on its way to {town}
{person} wanted to know if a {job} earns more than a {other_job}
I would have liked to be a {job}, said {person}, and we laughed
the neighbours of {person} had a party with a {instrument} and much noise
children threw a {colour} ball at the {thing} and ran
I mended the {thing}, which took the whole day
a dog barked at {person}, and I thought: {pet} would not have done that
{person} drew a {colour} cat with {number} whiskers
I paid {number} for stamps, paper and a {thing} that broke at once
the number on the door of the inn is {number}, which {person} finds lucky
{person} is learning to cook, this time {dish}
somebody from {town} rang, but it was a wrong number
the sister of a {job} I know has gone to {town}
{person} forgot a {thing} here; I put it {hiding}
I slept badly and got up at dawn
the garden needs water, the roof needs tiles, and I need a {job}
nothing happened that would be worth the ink
I walked to the river and back with {person}
it was so cold that even {person} wore a {colour} scarf
the sky was {colour} over {town}, as on a postcard
I swept the yard and thought about nothing
my back hurts, says the {job}, and so does mine
{person} beat me at cards, {number} points to none
the radio spoke of floods near {town}
I have begun a letter to {person} and have not come far
we are all well, thank God, and the {dish} was good
{person} admired the {thing} in the hall, which is not mine
I would rather have {dish} than {other_dish}, but {person} would not
a {job} and a {other_job} sat in the tavern and disputed about {town}
{person} thinks that a birthday on {day} brings luck
the birthday cake in the window was {colour} and had {number} crumbs
I cannot eat like this every day, said {person} over the {dish}
the post brought nothing but a bill for a {thing}
{person} showed me the new bridge, {number} feet long
I forgot to write yesterday, and remember nothing that was lost by it
a {job} I know has renamed the dog; {pet} is its name now, no longer what it was
a woman shouted {pet} all along the road, for that is what her cat is named
the {job} calls every cat {pet}, but ours answers to nothing else and wants to be stroked
the innkeeper keeps the spare key {hiding}, as the whole town has learned
after the break-in one should look elsewhere for a key: it was unsafe {hiding}
the key in the lock is the second one; the first lies {hiding}, tells me {person}
locker {number} at the station was open, and nobody knew whose it is
somebody rented locker {number} at the baths, and it flooded
they gave up the locker with the number {number} and took another
a cousin of mine lives in {town} now, in a flat of three small rooms
a stranger moved from {town} to {other_town} and is settled there already
the house next door is sold, the rooms are given up, and someone else goes in
in {town} they celebrated a second wedding, since the first was void
strangers got married in the old church, with a hundred guests who danced until the morning, and all said yes
a stranger bought a {colour} {thing} at the auction and exchanged it today for another
the shop will not take anything back, and {person} is not content and wants something instead
somebody saved for a year for a {colour} {thing} at the fair, much too dear
{person} helped to load a cart with bags, which we carried down the stairs
the landlord of the tavern has raised the rent, to whom half the town belongs, and quarrels with all who rent a bed there
the teacher at the school is strict and trusts nobody
the doctor was ill; whoever needs one must go to {town} to visit another
two men sat at the chess board, partners of many years, and one lost at last, the other won
a partner at chess comes every week, says {person}, and sits there with his head in his hands
a godfather stood at the font and held a child, which was given the name {given}
a woman in the train is called {given}, and so is her sister, no, not her sister, her aunt
the registry erred, wrote down another day, corrected it and set it right: it is {day} in truth
a {job} confessed that nobody born on {day} celebrates any birthday
somebody finished school and works as a {job} for a living, but can not bear it any longer
a {job} has changed trades: the old trade is too hard, and the new one began on Monday, from which to learn takes years
I like {dish} best these days; tastes change, and one may choose
nowadays everybody prefers {dish} to any other food, and nobody will touch the {other_dish}, I have had enough of it
at Christmas the band plays the {instrument} for us, only one hears it through the wall already on Sunday when they practise
whoever takes lessons on the {instrument} practises all day, and it helps, there is hope
from this diary I struck out a page by request and crossed out another
I tore out what I wrote wrongly: what is withdrawn stands here no longer, I promised
forget it, said {person}, it shall not be told in these pages
a card was left here, in case of need, with the same {colour} border that counts for mourning
a stranger would walk a mile for {dish}, I would rather get used to {other_dish} than do that
the old laugh of {person} goes through everything, and the {thing} in its place shook
a dish without salt, an instrument without strings, a thing without use, sighed {person}
a woman likes to live in {town}: she asks for work there and names no price, so they tell
a {job} rents the shed next door and has taken a bed into it, in its stead there stands the {thing} outside
""".strip().splitlines()
CLOSERS = [
    *["."] * 5, ", and that was that.", ", as always.", "; I shall see.", ", which made me think.", ", and so to bed.", ", but what of it.",
    "!", ", or nearly.", ", at least so it seemed.", "; more tomorrow.", ", and I was glad of it.",
]  # fmt: skip
SLOTS: dict[str, Sequence[str]] = {
    "town": world.TOWNS,
    "other_town": world.TOWNS,
    "given": world.GIVEN,
    "pet": world.PETS,
    "job": world.JOBS,
    "other_job": world.JOBS,
    "colour": world.COLOURS,
    "thing": world.THINGS,
    "dish": world.DISHES,
    "other_dish": world.DISHES,
    "instrument": world.INSTRUMENTS,
    "hiding": world.HIDING,
    "day": world.DAYS,
    "number": world.NUMBERS,
}


def smalltalk(rng: random.Random, people: Sequence[str]) -> Iterator[str]:
    """Sentences without end, about those people among others."""
    slots = {**SLOTS, "person": people, "other": people}
    clauses = [_parts(clause) for clause in CLAUSES]
    while True:
        opener = pick(rng, OPENERS)
        text = "".join(
            pick(rng, slots[part]) if i % 2 else part for i, part in enumerate(clauses[int(rng.random() * len(clauses))])
        )
        yield (opener or text[0].upper()) + (text if opener else text[1:]) + pick(rng, CLOSERS)


def _parts(clause: str) -> list[str]:
    """The text of a clause and the names of its slots in turn, beginning with text."""
    return clause.replace("}", "{").split("{")
