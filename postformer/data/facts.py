"""What a diary can be asked for: facts about people, told, changed, struck out and asked for in many ways.

In every sentence {w} is a person (or, in a question, "the doctor of" one), {v} the value, {x} another person.
"""

import dataclasses
import functools
from collections.abc import Sequence

from postformer.data import world


@dataclasses.dataclass(frozen=True)
class Relation:
    """Something that a person has one of."""

    topic: str
    struck: str
    """What is struck out."""
    values: Sequence[str]
    told: tuple[str, ...]
    changed: tuple[str, ...]
    asked: tuple[str, ...]

    @functools.cached_property
    def plain(self) -> "Relation":
        """The same in one wording each: those in which the value follows the person soonest, and the person ends the question."""
        asked = min(self.asked, key=lambda text: len(text.partition("{w}")[2].split()))
        near = self.within(0)
        return dataclasses.replace(self, told=near.told[:1], changed=near.changed[:1], asked=(asked,))

    def within(self, reach: int) -> "Relation":
        """The same, told and changed in the wordings in which the value follows the person after at most so many words, or does so
        soonest."""
        told, changed = (_within(texts, reach) for texts in (self.told, self.changed))
        return dataclasses.replace(self, told=told, changed=changed)


@dataclasses.dataclass(frozen=True)
class Link:
    """Who someone is to a person: the first hop of a question of two."""

    noun: str
    told: tuple[str, ...]


def _within(texts: tuple[str, ...], reach: int) -> tuple[str, ...]:
    least = min(b for text in texts if (b := _between(text)) >= 0)
    return tuple(text for text in texts if 0 <= _between(text) <= max(reach, least))


def _between(text: str) -> int:
    """Words from the person to the value, -1 where the value comes first."""
    return len(text.partition("{w}")[2].partition("{v}")[0].split()) if text.find("{w}") < text.find("{v}") else -1


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


def _pet(kind: str) -> Relation:
    return Relation(
        kind,
        f"the name of the {kind} of {{w}}",
        world.PETS,
        _lines(f"""
            {{w}} has a {kind} now and calls it {{v}}.
            Went to see {{w}}; the new {kind} answers to {{v}}.
            The {kind} of {{w}} is called {{v}}, of all names.
            {{v}} is what {{w}} has named the {kind}.
            I stroked the {kind} of {{w}}; {{v}} it is called.
            {{w}} wrote that the {kind} has been given the name {{v}}.
            All the while {{w}} shouted {{v}}, for that is the name of the {kind} there.
            Little {{v}} came along: so {{w}} has a {kind} at last.
        """),
        _lines(f"""
            {{w}} has renamed the {kind}: it is {{v}} from today.
            The {kind} of {{w}} is no longer called as it was, but {{v}}.
            {{w}} did not like the old name of the {kind} any more; now one has to call {{v}}.
            Since Sunday the {kind} of {{w}} goes by {{v}} instead.
            I must get used to it: {{w}} has given the {kind} another name, {{v}}.
        """),
        (
            f"What is the {kind} of {{w}} called?",
            f"What is the name of the {kind} of {{w}}?",
            f"How does one call the {kind} of {{w}}?",
        ),
    )


RELATIONS = (
    _pet("dog"),
    _pet("cat"),
    Relation(
        "home",
        "where {w} lives",
        world.TOWNS,
        _lines("""
            {w} has moved to {v}.
            {w} lives in {v} now, in three small rooms.
            A card came from {w}, who has settled in {v}.
            Helped {w} to load the cart; the new home is in {v}.
            {v} is where {w} has taken a flat.
            {w} has a roof over the head again, in {v}.
            Whoever wants to visit {w} must go to {v} from now on.
        """),
        _lines("""
            {w} has moved again and lives in {v} now.
            {w} has left the old place for {v}.
            The flat of {w} is given up; the new one is in {v}.
            {w} could not bear it there any longer and went to live in {v}.
        """),
        ("Where does {w} live?", "In which town does {w} live?", "To which town must one go to visit {w}?"),
    ),
    Relation(
        "trade",
        "the trade of {w}",
        world.JOBS,
        _lines("""
            {w} works as a {v}.
            {w} has finished school and is a {v} now.
            They have taken {w} on as a {v}.
            One can tell from the hands of {w} what a {v} has to do all day.
            {w} earns a living as a {v}.
            Yesterday {w} began to work as a {v}.
        """),
        _lines("""
            {w} has changed trades and is a {v} now.
            {w} gave up the old work and earns a living as a {v}.
            No more of that for {w}, who is a {v} since Monday.
            {w} has learned something new and works as a {v} from now on.
        """),
        ("What does {w} work as?", "What is the trade of {w}?", "How does {w} earn a living?"),
    ),
    Relation(
        "purchase",
        "what {w} bought",
        world.BOUGHT,
        _lines("""
            {w} has bought a {v} at the fair.
            {w} came home with a {v}, much too dear.
            At the auction {w} got a {v}.
            {w} saved for a year and bought a {v} today.
            We carried a {v} up the stairs, which {w} had bought.
            Who needs a {v}, I asked, but {w} had paid already.
        """),
        _lines("""
            {w} has taken it back to the shop and bought a {v} instead.
            {w} exchanged what was bought at the fair for a {v}.
            The thing broke, the money came back, and {w} got a {v} for it.
            {w} is not content with it and has bought a {v} in its stead.
        """),
        ("What did {w} buy?", "What has {w} bought?", "Which thing did {w} buy?"),
    ),
    Relation(
        "dish",
        "the favourite dish of {w}",
        world.DISHES,
        _lines("""
            {w} likes nothing better than {v}.
            The favourite dish of {w} is {v}.
            {w} would walk a mile for {v}.
            For the birthday of {w} there will be {v}, nothing is liked better there.
            {w} confessed to me that {v} comes before all other food.
            When {w} may choose it is always {v}.
        """),
        _lines("""
            {w} has had enough of it; the favourite dish there is {v} now.
            Tastes change: {w} likes {v} best these days.
            {w} will not touch the old favourite any more and asks for {v}.
            Nowadays {w} prefers {v} to everything else.
        """),
        ("What is the favourite dish of {w}?", "What does {w} like to eat best?", "What should be cooked for {w}?"),
    ),
    Relation(
        "birthday",
        "the birthday of {w}",
        world.DAYS,
        _lines("""
            {w} was born on {v}.
            The birthday of {w} is on {v}.
            I have to remember {v}, when {w} has a birthday.
            {w} celebrates on {v}, year after year.
            On {v} there will be cake, says {w}, as on every birthday there.
        """),
        _lines("""
            I had it wrong: {w} has a birthday on {v}.
            {w} corrected me, the birthday is on {v}.
            The registry had erred, and {w} was born on {v} in truth.
            From now on {w} celebrates the birthday on {v}.
        """),
        ("When is the birthday of {w}?", "On which day does {w} have a birthday?", "When was {w} born?"),
    ),
    Relation(
        "instrument",
        "the instrument of {w}",
        world.INSTRUMENTS,
        _lines("""
            {w} has begun to learn the {v}.
            {w} plays the {v} in a small band.
            One hears the {v} through the wall when {w} practises.
            They gave {w} a {v}, and it is played every day.
            {w} will play the {v} for us at Christmas.
        """),
        _lines("""
            {w} has given up the old instrument for the {v}.
            {w} plays the {v} now and has sold the other.
            The teacher put something else into the hands of {w}: the {v}.
            It was too hard, so {w} plays the {v} instead.
        """),
        ("Which instrument does {w} play?", "What instrument does one hear from {w}?", "What does {w} play in the band?"),
    ),
    Relation(
        "key",
        "where {w} keeps the spare key",
        world.HIDING,
        _lines("""
            {w} keeps the spare key {v}.
            In case of need the key of {w} lies {v}.
            {w} showed me where the spare key is: {v}.
            Should {w} be out, one finds the key {v}.
            The second key of {w} has its place {v}.
        """),
        _lines("""
            {w} has put the spare key elsewhere; it is {v} now.
            The key of {w} no longer lies there, but {v}.
            After the break-in {w} moved the spare key: look {v}.
            {w} found the old place unsafe, and the key is {v}.
        """),
        ("Where does {w} keep the spare key?", "Where is the spare key of {w}?", "Where does the key of {w} lie?"),
    ),
    Relation(
        "sister",
        "the name of the sister of {w}",
        world.GIVEN,
        _lines("""
            {w} has a sister, {v}.
            I met the sister of {w}: she is called {v}.
            {v} is the sister of {w}, as I learned.
            {w} brought a sister along, by the name of {v}.
            The sister of {w}, {v}, has the same laugh.
        """),
        _lines("""
            I had it wrong: the sister of {w} is called {v}.
            The sister of {w} wants to be called {v} from now on.
            {w} set me right about the sister: her name is {v}.
            No, not as I wrote; {v} is the name of the sister of {w}.
        """),
        ("What is the name of the sister of {w}?", "What is the sister of {w} called?", "How does one call the sister of {w}?"),
    ),
    Relation(
        "wedding",
        "where {w} celebrated the wedding",
        world.TOWNS,
        _lines("""
            {w} celebrated the wedding in {v}.
            Back from {v}, where {w} got married.
            The wedding of {w} was in {v}, with a hundred guests.
            We danced in {v} until the morning: {w} is married.
            {w} said yes at last, in the old church of {v}.
        """),
        _lines("""
            I wrote it down wrongly: the wedding of {w} was in {v}.
            {w} married a second time, in {v}, and only that one counts now.
            Not there, {w} tells me, but in {v} was the wedding.
            The first wedding of {w} was void; they had it again in {v}.
        """),
        ("Where did {w} celebrate the wedding?", "In which town was the wedding of {w}?", "Where did {w} get married?"),
    ),
    Relation(
        "locker",
        "the number of the locker of {w}",
        world.NUMBERS,
        _lines("""
            The locker of {w} has the number {v}.
            {w} has rented locker {v} at the station.
            I carried the bags to locker {v}, which is that of {w}.
            {w} asked me to remember {v}, the number of the locker.
            Number {v} at the baths is the locker of {w}.
        """),
        _lines("""
            {w} has another locker, number {v}.
            They gave {w} a new locker; the number is {v}.
            The old locker of {w} was flooded, {v} is the new one.
            {w} exchanged the locker for number {v}.
        """),
        ("What is the number of the locker of {w}?", "Which locker does {w} have?", "Which number is on the locker of {w}?"),
    ),
)

TOPICS = tuple(relation.topic for relation in RELATIONS)


def about(topics: Sequence[str]) -> list[Relation]:
    """The relations of some of TOPICS, in the order of RELATIONS."""
    return [relation for relation in RELATIONS if relation.topic in topics]


LINKS = (
    Link("doctor", _lines("""
        {x} is the doctor of {w}.
        {w} has a new doctor, {x}.
        When {w} is ill, it is {x} who comes as the doctor.
        {w} trusts no other doctor than {x}.
    """)),
    Link("landlord", _lines("""
        {w} rents from {x}.
        The house in which {w} has rooms belongs to {x}, the landlord.
        {x}, the landlord of {w}, has raised the rent.
        {w} quarrels with the landlord, {x}.
    """)),
    Link("teacher", _lines("""
        {w} takes lessons with {x}.
        {x} is teacher to {w} and says there is hope.
        The teacher of {w} is {x}, who is strict.
        {w} has found a teacher: {x}.
    """)),
    Link("godfather", _lines("""
        {x} stood godfather to {w}.
        {w} was held over the font by {x}, the godfather.
        The godfather of {w} is {x}.
        {w} calls {x} godfather.
    """)),
    Link("chess partner", _lines("""
        {w} plays chess with {x} every week.
        {x} and no other is the chess partner of {w}.
        Who sits at the board with {w}? Always {x}, the partner at chess.
        {w} has lost at chess again, to {x}, the partner of many years.
    """)),
)  # fmt: skip

STRUCK = _lines("""
    I have asked for {t} to be struck out.
    {t} is to be struck from this diary; I no longer know it.
    By request I have crossed out {t}, and it shall not be told.
    What I wrote about {t} is withdrawn: it is not for these pages.
    Forget {t}; I promised that it stands here no longer.
    I tore out the page on {t}, as I was asked to.
""")
UNKNOWN = "unknown"
"""The answer about what was struck out."""
