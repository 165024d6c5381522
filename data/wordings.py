"""What arith's problems are made of: wordings (TEMPLATES for train and test, HELD_OUT for wordings) and words."""

from typing import NamedTuple


class Template(NamedTuple):
    """A wording and the way to its answer.

    text   slots are number letters ({a}, see RANGES), people ({person}, {other}, {third}; {he} {He} {him} are
           the first one's) and nouns (for every key of NOUNS: {item} {items} {other_item} {other_items})
    steps  one or two operations on number letters, in the order of the rationale; `it` is the last step's result
    also   further steps that have to come out sensibly, so that nobody gives away more than they have
    """

    text: str
    steps: str
    also: str = ""


# What a number letter may be. The numbers of a problem differ from each other, and none is 1: nouns stay plural.
RANGES = {"m": (2, 10), "n": (2, 10), "k": (2, 10), "h": (100, 500)} | {letter: (2, 50) for letter in "abcd"}

# Names: girls', then boys'. None ends in s, so that 's makes the possessive.
GIRLS, BOYS = (names.split() for names in (
    "Aisha Amara Astrid Bianca Camila Chloe Daphne Elena Farah Freya Greta Hana Imani Ingrid Jasmine Kavya Keiko Leila "
    "Linnea Lucia Maren Mei Nadia Naomi Noor Odette Petra Priya Rosa Sakura Selma Soraya Tamar Uma Vera Wanda Yara",
    "Ahmed Akira Anton Arjun Benno Bruno Cedric Dario Diego Emil Enzo Farid Felipe Gustav Hamid Hugo Ilya Ivan Javier "
    "Jonah Kenji Kofi Leif Lorenzo Malik Mateo Milan Nikhil Olaf Omar Pavel Quentin Rafael Ravi Sven Tariq Viktor",
))  # fmt: skip

# Singular forms; plural() makes the others. Within a kind no noun is part of another ("bead" and "glass bead").
NOUNS = {
    "item": (
        "badge|balloon|battery|bead|bell|block|bookmark|bow|bowl|bracelet|brush|button|calendar|candle|cap|coin|comb|"
        "comic book|crayon|cup|cushion|doll|drum|envelope|eraser|flag|flashlight|flute|fork|hat|headband|key|kite|"
        "lamp|lantern|magnet|map|marble|marker|mask|medal|mug|napkin|necklace|notebook|paper crane|patch|pencil|"
        "pillow|pin|pinwheel|postcard|poster|puppet|puzzle|ribbon|ring|ruler|seashell|spoon|sponge|stamp|sticker|"
        "tile|token|towel|toy car|trading card|umbrella|vase|water bottle|whistle"
    ),
    "fruit": "apple|apricot|banana|cherry|fig|grape|guava|kiwi|nectarine|orange|papaya|peach|pear|persimmon|plum",
    "treat": "bagel|brownie|bun|cookie|cracker|cupcake|muffin|pancake|pastry|pie|pretzel|sandwich|scone|tart|waffle",
    "animal": "alpaca|cow|donkey|duck|goat|hen|horse|lamb|llama|pig|pony|rabbit|turkey",
    "container": "bag|basket|bin|box|bucket|carton|case|chest|crate|sack",
    "colour": "black|blue|brown|green|orange|pink|purple|red|white|yellow",
}
NOUNS = {kind: nouns.split("|") for kind, nouns in NOUNS.items()}

TEMPLATES = [
    # One step: addition
    ("{person} has {a} {items}. {other} gives {him} {b} more. How many {items} does {person} have now?", "a + b"),
    ("{person} has {a} {items} and {other} has {b}. How many {items} do they have together?", "a + b"),
    ("There are {a} {colour} {items} and {b} {other_colour} ones in a {container}. How many {items} are there in the "
     "{container}?", "a + b"),
    ("{person} gave {a} {items} to {other} and still has {b}. How many {items} did {person} have at first?", "a + b"),
    ("{person} picked {a} {fruits} before lunch and {b} after lunch. How many {fruits} did {he} pick in all?", "a + b"),
    ("A baker made {a} {treats} on Saturday. On Sunday the baker made {b} more {treats} than on Saturday. How many "
     "{treats} did the baker make on Sunday?", "a + b"),
    ("{other} has {a} {items}. {person} has {m} more than {other}. How many {items} does {person} have?", "a + m"),
    ("{person} sold {m} {items} at the fair and went home with {a}. How many {items} did {he} bring to the fair?",
     "m + a"),
    ("A train left the station with {a} passengers. At the next stop {b} people got on and nobody got off. How many "
     "passengers were on the train then?", "a + b"),
    ("{person} walked {m} miles on Saturday and {n} miles on Sunday. How many miles did {he} walk over the weekend?",
     "m + n"),
    ("{person} saved {a} dollars in May and {b} dollars in June. How many dollars did {he} save in these two months?",
     "a + b"),
    ("A school library had {h} books. Then it bought {a} new ones. How many books does it have now?", "h + a"),
    ("{person} has {a} {items}, {b} {other_items} and {m} {fruits}. How many {items} and {other_items} does {he} have "
     "in all?", "a + b"),
    ("A farm has {a} {animals} and {b} {other_animals}. Its barn is {c} years old. How many animals live on the farm?",
     "a + b"),
    ("{person} found {a} {items} in the attic and {b} in the garage. It took {him} {m} hours. How many {items} did "
     "{he} find?", "a + b"),
    ("After {person} spent {a} dollars on a pair of shoes, {he} still had {b} dollars. How many dollars did {he} have "
     "before that?", "a + b"),
    ("{person} has {a} {items}, which is {b} fewer than {other} has. How many {items} does {other} have?", "a + b"),
    ("How many people sat down to dinner if {a} of them ordered soup and the other {b} ordered salad?", "a + b"),
    ("At dawn the temperature in {person}'s yard was {m} degrees. By noon it had risen by {n} degrees. What was the "
     "temperature at noon, in degrees?", "m + n"),
    ("A pine was {a} feet tall when {person} moved to the street. It has grown by {m} feet since then, and the oak "
     "next to it by {n} feet. How many feet tall is the pine now?", "a + m"),
    ("{other} is {a} years old. If {other} is {m} years younger than {person}, how old is {person}?", "a + m"),
    ("A museum had {h} visitors on Sunday, and {a} of them were children. On Monday {b} visitors came. How many "
     "visitors did it have on the two days together?", "h + b", "h - a"),
    ("On a long drive {person} counts {a} bicycles, {b} buses and {c} trucks. How many buses and trucks does {he} "
     "count?", "b + c"),
    ("{person}, who is {m} years old, has {a} dollars in the bank and {b} dollars in a jar at home. How many dollars "
     "is that in all?", "a + b"),
    ("Two parcels with {items} arrive at a shop, {a} in the first and {b} in the second. The shop sells {c} "
     "{other_items} on the same day. How many {items} arrive?", "a + b"),
    ("A lighthouse has {a} steps up to the lamp and another {b} from there to the roof. How many steps lead from the "
     "ground to the roof?", "a + b"),
    ("A pizza takes {a} minutes to prepare and then {b} minutes to bake, and it is enough for {m} people. How many "
     "minutes does it take {person} from start to finish?", "a + b"),
    ("When {a} of the {animals} had been sold, {b} were still on the farm. How many {animals} had lived there before "
     "the sale?", "a + b"),
    ("{person} and {other} each had {a} {items}. Then {person} found {m} more, and {other} lost {n}. How many more "
     "{items} than {other} does {person} have now?", "m + n", "a - n"),
    # One step: subtraction
    ("{person} had {a} {items}. {He} lost {b} of them on the way home. How many {items} does {he} have left?", "a - b"),
    ("{person} has {a} {items} and {other} has {b}. How many more {items} does {person} have than {other}?", "a - b"),
    ("{person} has {a} {items}. {other} has {b}. How many fewer {items} does {other} have than {person}?", "a - b"),
    ("There were {a} {animals} in a field. Some of them went into the barn, and {b} stayed in the field. How many "
     "{animals} went into the barn?", "a - b"),
    ("{person} needs {a} {items} for a school project. {He} already has {b}. How many more {items} does {he} need?",
     "a - b"),
    ("{person} had some {items}. {other} gave {him} {b} more, and now {he} has {a}. How many {items} did {person} have "
     "at the start?", "a - b"),
    ("A rope is {a} feet long. {person} cuts off {b} feet. How many feet of rope are left?", "a - b"),
    ("There are {a} children in a club. {b} of them ride the bus, and the others walk. How many children walk?",
     "a - b"),
    ("The older tree in {person}'s garden is {a} feet tall, and the younger one is {b} feet tall. How many feet taller "
     "is the older tree?", "a - b"),
    ("{person} scored {a} points in the first game and {b} points in the second. How many fewer points did {he} score "
     "in the second game than in the first?", "a - b"),
    ("Of the {h} seats in a concert hall, {a} are empty. How many seats are taken?", "h - a"),
    ("{person} and {other} have {a} {items} together. {b} of them are {other}'s. How many {items} does {person} have?",
     "a - b"),
    ("A stall opened with {a} {treats} and {b} {other_treats}. By noon {c} {treats} and {d} {other_treats} were sold. "
     "How many {treats} were left?", "a - c", "b - d"),
    ("{person} is reading a book with {m} chapters and {h} pages. So far {he} has read {a} pages. How many pages are "
     "left?", "h - a"),
    ("{person} has {a} {colour} {items} and {b} {other_colour} ones. {other} has {c} {items}. How many more {colour} "
     "{items} than {other_colour} {items} does {person} have?", "a - b"),
    ("{person} had {a} dollars. {He} spent {b} dollars on a book of {h} pages. How many dollars does {he} have left?",
     "a - b"),
    ("{person} had {a} {items}. {He} gave {m} of them to {other} and {n} to {third}. How many more {items} did {other} "
     "get than {third}?", "m - n", "a - m, it - n"),
    ("By how many dollars did a shop lower the price of a coat that used to cost {a} dollars and now costs {b}?",
     "a - b"),
    ("It is {a} blocks from {person}'s home to the station. After {b} blocks {person} stops to tie a shoe. How many "
     "blocks does {he} still have to go?", "a - b"),
    ("This morning there were {a} {treats} on the tray. Somebody has eaten some, for there are only {b} now. How many "
     "{treats} have been eaten?", "a - b"),
    ("{person} ran {a} miles in May and {b} miles in June. {other} ran {c} miles in June. How many more miles did "
     "{person} run in May than in June?", "a - b"),
    ("A bakery needs {a} pounds of flour for the week. In its storeroom there are {b} pounds of flour and {m} pounds "
     "of sugar. How many pounds of flour does it still have to buy?", "a - b"),
    ("{person}'s suitcase weighs {a} pounds, which is {b} pounds more than {other}'s. How many pounds does {other}'s "
     "suitcase weigh?", "a - b"),
    ("{person} wants to watch two films, the first of {a} minutes and the second of {b} minutes. After {m} minutes of "
     "the first one the power fails. How many minutes of the first film does {he} miss?", "a - m"),
    ("At a school play there were {a} children and {b} parents. Of the children, {c} were on stage. How many of the "
     "children were not?", "a - c"),
    ("{person} went shopping with {h} dollars and spent {a} on clothes, {b} on groceries and {c} on books. How many "
     "more dollars did {he} spend on clothes than on books?", "a - c", "h - a, it - b, it - c"),
    ("Out of {a} shots at the hoop, {person} missed {b}. How many of the shots went in?", "a - b"),
    ("The road along the lake is {a} miles long. The road over the hill is only {b} miles long, but takes {m} minutes "
     "more. By how many miles is the road over the hill shorter?", "a - b"),
    ("{person} set out with {a} {items} and {b} {other_items}. At the market {he} gave {other} {m} {items} and got {n} "
     "{other_items} for them. How many {items} does {person} have after that?", "a - m"),
    ("In the morning a shop had {a} {items} and {b} {other_items}. After a delivery it has {c} {items} and {d} "
     "{other_items}. How many {items} were delivered?", "c - a", "d - b"),
    # One step: multiplication
    ("There are {n} {containers} with {a} {items} in each. How many {items} are there in all?", "n * a"),
    ("{person} buys {n} {items} for {m} dollars each. How many dollars does {he} pay?", "n * m"),
    ("{person} reads {a} pages a day. How many pages does {he} read in {n} days?", "a * n"),
    ("A gardener plants {m} rows of tulips with {a} tulips in each row. How many tulips does the gardener plant?",
     "m * a"),
    ("{person} has {m} {items}. {other} has {n} times as many. How many {items} does {other} have?", "m * n"),
    ("A group of {n} friends went to the fair, and each of them bought {m} {treats}. How many {treats} did they buy in "
     "all?", "n * m"),
    ("A machine makes {a} chairs an hour. How many chairs does it make in {n} hours?", "a * n"),
    ("A parking garage has {n} floors with {a} spaces on each floor. How many cars can park in it?", "n * a"),
    ("{person} runs {m} miles every morning. How many miles does {he} run in {a} mornings?", "m * a"),
    ("Each {container} holds {a} {items} and weighs {m} pounds. How many {items} do {n} {containers} hold?", "a * n"),
    ("{person} earns {m} dollars an hour and works {n} hours a day. The walk to work takes {a} minutes. How many "
     "dollars does {he} earn in a day?", "m * n"),
    ("A farmer has {n} pens with {m} {animals} in each, and {a} {other_animals} in the field. How many {animals} are "
     "in the pens?", "n * m"),
    ("A boat ticket costs {m} dollars, and the ride takes {a} minutes. How many dollars do {n} tickets cost?", "m * n"),
    ("How many {treats} does a waiter need for {n} tables if {m} of them go on each table?", "n * m"),
    ("{person} is building a garden wall. One brick weighs {m} pounds. How many pounds do {n} of these bricks weigh?",
     "m * n"),
    ("The kitchen floor is covered with square tiles, {a} along its length and {n} along its width. How many tiles are "
     "there on the floor?", "a * n", "a - n"),
    ("It takes {person} {m} minutes to wrap one {item}. At this pace, how many minutes does {he} need for {a} {items}?",
     "m * a"),
    ("{person} is {m} years old and {other} is {n}. The oak behind {person}'s house is {k} times as old as {person}. "
     "How old is the oak?", "m * k"),
    ("A ferry carries {a} cars on every trip. It makes {n} trips a day, each of which takes {b} minutes. How many cars "
     "does it carry in a day?", "a * n"),
    ("Once around the lake is {m} miles. {person} cycled around it {n} times last week, and {other} {k} times. How "
     "many miles did {person} cycle around the lake?", "m * n"),
    ("At the zoo a ticket is {m} dollars for a grown-up and {n} dollars for a child. What do the tickets for {a} "
     "children cost, in dollars?", "n * a", "m - n"),
    ("A wall is {n} rows of stones high, and there are {a} stones in every row. How many stones is the wall made of?",
     "n * a"),
    ("The clock in {person}'s kitchen loses {m} minutes every day. By how many minutes is it slow {n} days after it "
     "was set?", "m * n"),
    ("{person} buys {n} packs of {items}. Each pack holds {m} of them and costs {k} dollars. How many dollars does "
     "{he} pay?", "n * k"),
    ("{person} types {a} words a minute, and {other} types {b}. How many words can {person} type in {n} minutes?",
     "a * n"),
    # One step: division
    ("{person} shares {a} {items} equally among {n} friends. How many {items} does each friend get?", "a / n"),
    ("{person} puts {a} {treats} on plates, {n} on each plate. How many plates does {he} need?", "a / n"),
    ("A teacher splits {a} children into {n} teams of the same size. How many children are in each team?", "a / n"),
    ("{person} paid {a} dollars for {n} {items} of the same price. How many dollars did each {item} cost?", "a / n"),
    ("A board {a} inches long is cut into pieces of {n} inches each. How many pieces are there?", "a / n"),
    ("{person} has {a} {items}. That is {n} times as many as {other} has. How many {items} does {other} have?",
     "a / n"),
    ("{person} read a book of {h} pages in {n} days, the same number of pages every day. How many pages did {he} read "
     "each day?", "h / n"),
    ("Each van carries {n} people. How many vans are needed to carry {a} people?", "a / n"),
    ("A farmer keeps {a} {animals} in {n} pens, the same number in each. How many {animals} are in each pen?", "a / n"),
    ("A cook uses {n} eggs for every cake. How many cakes can the cook make with {a} eggs?", "a / n"),
    ("{person} has {a} {items} and {b} {other_items}. {He} packs the {items} into {n} {containers}, the same number in "
     "each. How many {items} are in each {container}?", "a / n"),
    ("{person} saves {n} dollars a week for a bicycle that costs {a} dollars. The shop is {m} miles away. How many "
     "weeks does {he} have to save?", "a / n"),
    ("A choir of {a} singers stands in {n} equal rows and sings {m} songs. How many singers are in each row?", "a / n"),
    ("{person} and {m} other people are in a club. The club buys {a} {items} in packs of {n}. How many packs does it "
     "buy?", "a / n"),
    ("How many times does {person} have to go to the car to fetch {a} {items} if {he} carries {n} at a time?", "a / n"),
    ("A blue ribbon is {a} inches long, which is {n} times the length of a red ribbon. How many inches long is the red "
     "ribbon?", "a / n"),
    ("A tortoise walks {a} feet in {n} minutes, always at the same speed. How many feet does it walk in one minute?",
     "a / n"),
    ("A florist has {a} roses and {b} tulips and ties the roses into bunches of {n}. How many bunches of roses does "
     "the florist get?", "a / n"),
    ("A boat ride of {m} miles cost {a} dollars, which {n} friends split evenly. How many dollars did each of the "
     "friends pay?", "a / n"),
    ("For how many days does a bag of {a} biscuits last if {person}'s dog gets {n} of them a day?", "a / n"),
    ("Each page of an album holds {n} photos. {person} has {a} photos from the lake and {b} from the mountains. How "
     "many pages do the photos from the lake fill?", "a / n"),
    ("The same number of people live in each of the {n} houses on a street. Altogether {a} people and {m} dogs live on "
     "the street. How many people live in each house?", "a / n"),
    ("A pump moves {n} gallons of water a minute. How many minutes does it take to empty a pool that is {m} feet deep "
     "and holds {h} gallons?", "h / n"),
    ("{person} packs {items} so that every {container} holds {n} of them and weighs {m} pounds. {He} has {a} {items}. "
     "How many {containers} does {he} fill?", "a / n"),
    ("{other} did {a} push-ups. That is {n} times as many as {person} did and {m} more than {third} did. How many "
     "push-ups did {person} do?", "a / n", "a - m"),
    ("{person} paid {a} dollars for cloth that costs {n} dollars a yard. How many yards of cloth did {he} buy?",
     "a / n"),
    # Two steps: addition and subtraction
    ("{person} has {a} {items}, {other} has {b} and {third} has {c}. How many {items} do the three of them have "
     "together?", "a + b, it + c"),
    ("{person} had {a} {items}. {He} bought {b} more and then gave {c} to {other}. How many {items} does {person} have "
     "now?", "a + b, it - c"),
    ("A bus had {a} passengers. At the next stop {b} got off and {c} got on. How many passengers are on the bus now?",
     "a - b, it + c"),
    ("{person} made {a} {treats}. {He} gave {b} to {other} and {c} to {third}. How many {treats} does {person} have "
     "left?", "a - b, it - c"),
    ("{person} has {a} {items}. {other} has {b} fewer than {person}. How many {items} do they have together?",
     "a - b, it + a"),
    ("A shop sold {a} {items} on Friday. On Saturday it sold {b} more than on Friday. How many {items} did it sell on "
     "the two days together?", "a + b, it + a"),
    ("{person} picked {a} {fruits} and {other} picked {b}. On the way home they ate {m} of them. How many {fruits} do "
     "they have left?", "a + b, it - m"),
    ("{person} has {a} {items}. {other} has {b} more than {person}, and {third} has {c} fewer than {other}. How many "
     "{items} does {third} have?", "a + b, it - c"),
    ("{person} pays for a book that costs {m} dollars and a game that costs {n} dollars with {a} dollars. How many "
     "dollars does {he} get back?", "m + n, a - it"),
    ("{person}'s team scored {a} points in the first half and {b} in the second. The other team scored {c} points in "
     "the whole game. By how many points did {person}'s team win?", "a + b, it - c"),
    ("{person} is {a} years old, and {other} is {m} years younger. How old will {other} be in {n} years?",
     "a - m, it + n"),
    ("There are {h} books in a shop. {a} of them are about animals, {b} are about history, and the others are novels. "
     "How many novels are there?", "h - a, it - b"),
    ("{person} has {a} {items} and {b} {other_items}. {He} finds {c} more {items} and gives {m} {items} to {other}. "
     "How many {items} does {person} have now?", "a + c, it - m"),
    ("A farm had {a} {animals}, {b} {other_animals} and {m} tractors. Then the farmer sold {n} of the {animals}. How "
     "many animals does the farm have now?", "a + b, it - n", "a - n"),
    ("{person} had {a} dollars. {He} earned {b} dollars for {m} hours of work and spent {c} dollars. How many dollars "
     "does {he} have now?", "a + b, it - c"),
    ("A library lent out {a} books on Monday and {b} on Tuesday. On these two days {c} books were brought back. How "
     "many more books were lent out than brought back?", "a + b, it - c"),
    ("How many {items} did {person} start with if {he} has {c} left after giving {a} to {other} and losing {b}?",
     "a + b, it + c"),
    ("A hotel had {a} guests. In the morning {b} of them left, and in the afternoon new guests came, so that there "
     "were {c}. How many new guests came?", "a - b, c - it"),
    ("{person} drove {a} miles to the lake, stayed for {m} hours and drove back by a road that was {b} miles shorter. "
     "How many miles did {he} drive in all?", "a - b, it + a"),
    ("Together, {person}'s cat and dog weigh {a} pounds. The dog alone weighs {b} pounds. How many pounds heavier is "
     "the dog than the cat?", "a - b, b - it"),
    ("How many {items} does {third} have if {person} has {a}, {other} has {b} and the three of them have {h} together?",
     "a + b, h - it"),
    ("An elevator starts on floor {a}, goes down {m} floors and then up {n} floors. On which floor is it now?",
     "a - m, it + n"),
    ("{person} had {a} dollars, and {other} had {b}. {person} then paid {m} dollars for lunch and {n} dollars for a "
     "bus ticket. How many dollars does {person} have left?", "a - m, it - n"),
    ("{person} flies to the coast. The first flight takes {a} minutes and the second {b} minutes, and the wait between "
     "them {c} minutes. How many minutes pass from the first takeoff to the last landing?", "a + b, it + c"),
    ("{person} began a game with {a} points, lost {b} in the first round and won {c} in the second, which took {m} "
     "minutes. How many points did {he} have after that?", "a - b, it + c"),
    # Two steps: multiplication with addition or subtraction
    ("{person} buys {n} {containers} with {m} {items} in each and gives {a} of the {items} to {other}. How many "
     "{items} does {person} have left?", "n * m, it - a"),
    ("{person} has {n} {containers} with {a} {items} in each, and {b} more {items} on a shelf. How many {items} does "
     "{he} have in all?", "n * a, it + b"),
    ("{person} has {a} dollars. {He} buys {n} {items} for {m} dollars each. How many dollars does {he} have left?",
     "n * m, a - it"),
    ("{person} has {m} {items}, and {other} has {n} times as many. How many {items} do they have together?",
     "m * n, it + m"),
    ("{person} has {m} {items}. {other} has {n} times as many. How many more {items} does {other} have than {person}?",
     "m * n, it - m"),
    ("{person} earns {m} dollars an hour. {He} worked {n} hours on Saturday and {k} hours on Sunday. How many dollars "
     "did {he} earn on the two days together?", "n + k, it * m"),
    ("{person} is reading a book of {h} pages. {He} has read {a} pages a day for {n} days. How many pages are left?",
     "a * n, h - it"),
    ("{person} made {a} {treats} and kept {m} of them. {He} sold the others for {n} dollars each. How many dollars did "
     "{he} get?", "a - m, it * n"),
    ("A full tank holds {h} gallons of water. Every day {m} gallons leak out. How many gallons are left in it after "
     "{n} days?", "m * n, h - it"),
    ("A hall has {m} rows of seats with {a} seats in each row. {b} of the seats are taken. How many seats are free?",
     "m * a, it - b"),
    ("{person} solved {m} puzzles a day for {n} days. {other} solved {k} puzzles in all. How many more puzzles did "
     "{person} solve than {other}?", "m * n, it - k"),
    ("{person} rents a boat for {n} hours. It costs {m} dollars an hour and {a} dollars for cleaning. How many dollars "
     "does {he} pay?", "n * m, it + a"),
    ("{person} bought {n} {containers} for {k} dollars each. Every {container} held {a} {items}. {He} gave {b} of the "
     "{items} to {other}. How many {items} does {person} have left?", "n * a, it - b"),
    ("A farmer had {m} pens with {n} {animals} in each, and {a} {other_animals}. Then {k} of the {animals} ran away. "
     "How many {animals} does the farmer have now?", "m * n, it - k"),
    ("A taxi costs {k} dollars to start with and {m} dollars for every mile. How many dollars does {person} pay for a "
     "ride of {n} miles?", "m * n, it + k"),
    ("A theater has {b} seats upstairs. Downstairs it has {n} rows of {a} seats. How many more seats are there "
     "downstairs than upstairs?", "n * a, it - b"),
    ("An empty cart weighs {a} pounds. {person} loads it with {n} bricks of {m} pounds each. How many pounds does the "
     "loaded cart weigh?", "n * m, it + a"),
    ("A quiz has {a} questions, with {m} points for every right answer and none for a wrong one. {person} gets {n} "
     "answers wrong and the others right. How many points does {he} get?", "a - n, it * m"),
    ("{person} practices the violin for {a} minutes a day and {other} for {b}. How many more minutes than {other} does "
     "{person} practice in {n} days?", "a - b, it * n"),
    ("For a party {person} bought {n} pizzas for {m} dollars each and {k} bottles of juice for {a} dollars in all. How "
     "many dollars did {he} spend?", "n * m, it + a"),
    ("{other} has {m} {items}. {person} has {n} times as many {items} as {other}, and {b} {other_items}. How many "
     "{items} and {other_items} does {person} have in all?", "m * n, it + b"),
    ("This year {person} got {m} jars of honey from each of {n} hives. Last year it was {a} jars in all. How many more "
     "jars did {he} get this year?", "m * n, it - a"),
    ("A farmer plants {n} rows of {a} cabbages. Rabbits eat {m} cabbages in every row. How many cabbages are left?",
     "a - m, it * n"),
    # Two steps: division with addition or subtraction
    ("{person} had {a} {items}. {He} kept {b} of them and shared the others equally among {n} friends. How many "
     "{items} did each friend get?", "a - b, it / n"),
    ("{person} has {a} {colour} {items} and {b} {other_colour} ones. {He} puts all of them into {n} {containers}, the "
     "same number in each. How many {items} are in each {container}?", "a + b, it / n"),
    ("{person} shared {a} {treats} equally among {n} children. {other} was one of them and already had {m} {treats}. "
     "How many {treats} does {other} have now?", "a / n, it + m"),
    ("{person} packed {a} {items} into {n} {containers}, the same number in each. Then {he} took {m} out of one "
     "{container}. How many {items} are left in that {container}?", "a / n, it - m"),
    ("A trip is planned for {a} children and {m} teachers. Each van carries {n} people. How many vans are needed?",
     "a + m, it / n"),
    ("{person} wants to buy a tent for {h} dollars. {He} has {a} dollars and saves {m} dollars a week. How many weeks "
     "does {he} have to save?", "h - a, it / m"),
    ("{person} cuts {m} inches off a ribbon of {a} inches and cuts the rest into {n} equal pieces. How many inches "
     "long is each piece?", "a - m, it / n"),
    ("A farmer collects {a} eggs in the morning and {b} in the evening. Each carton holds {n} eggs. How many cartons "
     "can the farmer fill?", "a + b, it / n"),
    ("{person} paid {a} dollars for {n} {items} of the same price. In another shop each one costs {m} dollars less. "
     "How many dollars does one {item} cost there?", "a / n, it - m"),
    ("{person} packed {a} {items} in {n} hours and took {b} {items} home. {other} packed {m} more {items} an hour than "
     "{person}. How many {items} did {other} pack each hour?", "a / n, it + m", "a - b"),
    ("A summer camp has {a} boys and {b} girls, and its hall has {m} windows. Each table seats {n} children. How many "
     "tables does the camp need?", "a + b, it / n"),
    ("In a book of {h} pages there are {a} pages of pictures. {person} reads all the other pages in {n} days, the same "
     "number every day. How many pages does {he} read each day?", "h - a, it / n"),
    ("A baker makes {a} {treats}, drops {m} of them on the floor and packs the others into {containers}, {n} in each. "
     "How many {containers} can the baker fill?", "a - m, it / n"),
    ("A street party costs {a} dollars for food and {b} dollars for music. The {n} families on the street share the "
     "cost equally. How many dollars does each family pay?", "a + b, it / n"),
    ("In {n} days {person} wrote {a} letters, the same number every day. {other} wrote {m} letters a day. How many "
     "more letters a day did {person} write than {other}?", "a / n, it - m"),
    ("{person} has {a} {items}, {n} times as many as {other}. How many {items} do the two of them have together?",
     "a / n, it + a"),
    ("{person} picked {a} {fruits} and {b} {other_fruits}. {He} ate {m} of the {fruits} and put the rest of the "
     "{fruits} into {n} {containers}, equally many in each. How many {fruits} are in each {container}?",
     "a - m, it / n"),
    ("An old machine makes {h} screws in {n} minutes. A newer one makes {a} screws more a minute. How many screws does "
     "the newer machine make in one minute?", "h / n, it + a"),
    ("{person} is {a} years old. In {m} years {he} will be {n} times as old as {other} is now. How old is {other} now?",
     "a + m, it / n"),
    # Two steps: multiplication and division
    ("A shop has {n} shelves. On each shelf are {m} {containers}, and each {container} holds {k} {items}. How many "
     "{items} are there in all?", "n * m, it * k"),
    ("{person} has {n} {containers} with {a} {items} in each. {He} shares all of the {items} equally among {m} "
     "friends. How many {items} does each friend get?", "n * a, it / m"),
    ("At the market {n} {fruits} cost {a} dollars. At the same price, how many dollars do {m} {fruits} cost?",
     "a / n, it * m"),
    ("{person} has {a} {items}. They are packed in {n} equal {containers}. How many {items} are there in {m} of the "
     "{containers}?", "a / n, it * m", "n - m"),
    ("A machine fills {a} bottles in {n} minutes. How many bottles does it fill in {m} minutes at the same speed?",
     "a / n, it * m"),
    ("A school orders {m} cases with {n} {items} in each, and {a} chairs. The {items} go to {k} rooms, the same number "
     "to each. How many {items} does each room get?", "m * n, it / k"),
    ("{person} has {n} bags with {m} bulbs in each and wants to plant {k} bulbs in every pot. How many pots does {he} "
     "need for all of the bulbs?", "n * m, it / k"),
    ("A cook needs {a} eggs for {n} cakes of the same kind. How many eggs does the cook need for {m} such cakes?",
     "a / n, it * m"),
    ("On a map, {n} inches stand for {a} miles. How many miles apart are two towns that are {m} inches apart on the "
     "map?", "a / n, it * m"),
    ("A class of {a} children works in groups of {n}, in a room with {k} windows. Each group gets {m} {items}. How "
     "many {items} does the teacher hand out?", "a / n, it * m"),
    ("{person} reads {m} chapters of a book a day and is done in {n} days. How many days does {other} need for the "
     "same book at {k} chapters a day?", "m * n, it / k"),
    ("A shop takes back empty bottles and pays {m} dollars for every {n} of them. How many dollars does {person} get "
     "for {a} bottles?", "a / n, it * m"),
]  # fmt: skip

HELD_OUT = [
    # One step: addition
    ("When the party was over, {a} balloons were still whole and {b} had burst. How many balloons had there been at "
     "the start?", "a + b"),
    ("In a game of darts {other} scored {a} points, {m} points fewer than {person}. How many points did {person} "
     "score?", "a + m"),
    ("The water in the bay is {c} feet deep. {person} took {a} minutes to swim across it and {b} minutes to swim back. "
     "For how many minutes did {he} swim in all?", "a + b"),
    ("In {person}'s garden stand {a} rose bushes, {m} oaks and {n} birches. How many trees are there in the garden?",
     "m + n"),
    ("How many pounds does {person} carry up the stairs with a bag of {m} pounds in one hand and a bag of {n} pounds "
     "in the other?", "m + n"),
    ("A puppy weighed {m} pounds when {person} brought it home {k} weeks ago, and it has gained {n} pounds since. How "
     "many pounds does the puppy weigh now?", "m + n"),
    ("Some children were on the playground. Then {a} of them were called home, which left {b}. How many children had "
     "been there at first?", "a + b"),
    # One step: subtraction
    ("Before it burned for {k} hours, a candle was {m} inches tall. Afterwards it was only {n} inches tall. By how "
     "many inches did the candle shrink?", "m - n"),
    ("{person} was born on the day when {other} turned {m}. Now {other} is {a} years old. How old does that make "
     "{person}?", "a - m"),
    ("For a sweater with {m} buttons {person} paid {b} dollars instead of {a}. How many dollars did {he} save?",
     "a - b"),
    ("All {h} tickets to the concert had been sold, but {a} ticket holders stayed at home. How many ticket holders "
     "came?", "h - a"),
    ("On Monday {person} did {a} sit-ups and {b} push-ups. On Tuesday {he} did {c} sit-ups. How many fewer sit-ups did "
     "{he} do on Tuesday than on Monday?", "a - c"),
    ("Of the {c} boys and {a} girls in a chess club, {b} girls and {d} boys have been to a tournament. How many of the "
     "girls have not been to one yet?", "a - b", "c - d"),
    ("A {container} of {a} {fruits} stood in the sun until {b} of the {fruits} went bad. How many {fruits} were still "
     "good?", "a - b"),
    ("A tour bus has {a} seats. So far {b} of them are booked, for {m} dollars each. How many seats can still be "
     "booked?", "a - b"),
    ("All of {person}'s {a} {items} are either {colour} or {other_colour}. If {b} are {colour}, how many are "
     "{other_colour}?", "a - b"),
    # One step: multiplication
    ("After the rain {person} found {m} snails on each of the {n} bushes by the fence. How many snails did {he} find?",
     "m * n"),
    ("What does {person} pay, in dollars, for {n} violin lessons of {a} minutes if one lesson costs {m} dollars?",
     "n * m"),
    ("How many miles does a mail carrier walk in {n} days if the daily route is {m} miles long?", "n * m"),
    ("{other}'s tower of toy bricks is {m} inches high. {person} builds one that is {n} times as high. How many inches "
     "high is {person}'s tower?", "m * n"),
    ("Teams from {k} schools come to a tournament. Every school sends {n} teams, and every team has {m} players. How "
     "many players does each school send?", "n * m"),
    ("A tray has room for {m} {treats}. How many {treats} can {person} carry to the guests on {n} full trays?",
     "m * n"),
    # One step: division
    ("A game has {a} cards, and a round takes {m} minutes. All of the cards are dealt to {n} players, who get equally "
     "many. How many cards does each player hold?", "a / n"),
    ("{person} wants to run {a} miles this month at {n} miles a run. How many runs will that take {him}?", "a / n"),
    ("It took {n} barrels of the same size to hold {h} gallons of cider, and every barrel was full. How many gallons "
     "does one barrel hold?", "h / n"),
    ("{other}'s savings of {a} dollars are {n} times as large as {person}'s. How many dollars has {person} saved?",
     "a / n"),
    ("A tailor sews {n} buttons on every shirt and {m} on every coat. For how many shirts are {a} buttons enough?",
     "a / n"),
    ("For {b} dollars {person} buys a {container} of {a} {fruits} and divides the {fruits} evenly among {n} neighbors. "
     "How many {fruits} does each neighbor receive?", "a / n"),
    # Two steps: addition and subtraction
    ("{person} found {a} new messages in the morning and got {b} more during the day. In the evening {c} of all these "
     "were still unread. How many of the messages had {he} read?", "a + b, it - c"),
    ("{other}'s sunflower is {m} inches taller than {person}'s and {n} inches shorter than {third}'s. If {person}'s "
     "sunflower measures {a} inches, how many inches tall is {third}'s?", "a + m, it + n"),
    ("In May {h} people lived in a village. By fall {a} had moved away, {b} had moved in and {m} new houses had been "
     "built. How many people lived there then?", "h - a, it + b"),
    ("From a plate of {a} {treats} {person} took {m}, and {other} took {n} more than {person}. How many {treats} did "
     "the two of them take together?", "m + n, it + m", "a - m, it - m, it - n"),
    ("How many dollars does {person} still need for a bicycle that costs {h} dollars if {he} has saved {a} dollars and "
     "{other} lends {him} {b}?", "h - a, it - b"),
    ("A squirrel hid {a} nuts under one tree and {b} under another. In winter it dug up only {c} of them. How many "
     "nuts stayed in the ground?", "a + b, it - c"),
    # Two steps: multiplication with addition or subtraction
    ("A school rents {n} buses with {a} seats each for a trip. On the way {b} of the seats stay empty. How many of the "
     "seats are in use?", "n * a, it - b"),
    ("Every day a cafe makes {a} {treats} and sells {b} of them. A shelter gets the rest. How many {treats} does the "
     "shelter get in {n} days?", "a - b, it * n"),
    ("At the fair each ride costs {m} dollars and lunch costs {k} dollars. {person} takes {n} rides and has lunch "
     "once. How many dollars does {he} spend?", "n * m, it + k"),
    ("A shelf hangs {a} inches above the floor. On it {person} stacks {n} boxes, each of them {m} inches high. How "
     "many inches above the floor is the top of the stack?", "n * m, it + a"),
    ("{person}'s house is {a} years old, and the church across the street is {n} times as old. How many years older "
     "than the house is the church?", "a * n, it - a"),
    ("On Saturday {person} delivered {a} newspapers on each of {n} streets. On Sunday, in {m} hours, {he} delivered "
     "{b} in all. How many newspapers did {he} deliver over the weekend?", "a * n, it + b"),
    # Two steps: division with addition or subtraction
    ("At the movies {person} paid {a} dollars in all, {m} dollars for popcorn and the rest for {n} tickets of the same "
     "price. How many dollars was each ticket?", "a - m, it / n"),
    ("A gym teacher tells {a} girls and {b} boys to line up in rows of {n}. How many rows does that make?",
     "a + b, it / n"),
    ("A carton of {a} {items} was divided evenly among {n} cousins. {person}, one of the cousins, lost {m} of the "
     "{items} on the way home. How many {items} did {he} bring home?", "a / n, it - m"),
    ("A shepherd has {a} pounds of feed and buys {b} pounds more. All {m} sheep together eat {n} pounds a day. How "
     "many days does the feed last?", "a + b, it / n"),
    ("A kite is {a} feet above the ground, which is {n} times the height of the tree below it. How many feet above the "
     "top of the tree is the kite?", "a / n, a - it"),
    # Two steps: multiplication and division
    ("A cafe uses up {m} tea bags a day. For how many days will {n} {containers} with {a} tea bags in each be enough?",
     "n * a, it / m"),
    ("{person} jogs around the park {n} times in {a} minutes. How many minutes would {he} take for {m} rounds at the "
     "same pace?", "a / n, it * m"),
    ("In one afternoon {n} scouts collected {a} cans each, and {m} families got all the cans, equally many to each "
     "family. How many cans did every family get?", "n * a, it / m"),
    ("{person} strings {m} red beads for every {n} white ones. How many red beads go with {a} white beads?",
     "a / n, it * m"),
]  # fmt: skip

TEMPLATES, HELD_OUT = ([Template(*row) for row in table] for table in (TEMPLATES, HELD_OUT))
