"""The tables of arith's grammar: words, stories, and the verbs that fill them. data/arith.py puts them together.

[a|b|c]  one of these; [|a] is a or nothing
<d a|b>  a if the sign of d in its relation is plus, b if it is minus
{K}      a slot: a noun (kinds K, L, M; k is one of K), a person, a verb; {got:@x {K}} is a verb with its object
@x       the number of the quantity x
*        before an alternative, a story, a verb: held out, for the split `wordings` alone
"""


def table(text: str) -> dict[str, list[str]]:
    """Lines of a key, or several with commas, and its alternatives; a line that begins with a space goes on."""
    lines = [line.partition(" ") for line in text.replace("\n  ", "").strip().split("\n")]
    return {key: alternatives.split("|") for keys, _, alternatives in lines for key in keys.split(",")}


# Names: girls', then boys'. None ends in s, so that 's makes the possessive.
GIRLS, BOYS = (names.split() for names in (
    "Aisha Alice Amara Anna Astrid Beth Bianca Camila Carol Chloe Clara Daphne Debra Elena Emma Erin Farah Freya Gina "
    "Greta Hana Holly Imani Ingrid Irene Jasmine Joan Julie Karen Kavya Keiko Kelly Laura Leila Lily Linnea Lucia "
    "Maren Maria Megan Mei Molly Nadia Naomi Nina Noor Odette Olga Petra Priya Rita Rosa Ruth Sakura Sandra Sara "
    "Selma Soraya Tamar Tina Uma Vera Wanda Wendy Yara Zoe",
    "Adrian Ahmed Akira Anton Arjun Ben Benno Bill Bruno Carl Cedric Daniel Dario David Diego Emil Enzo Eric Farid "
    "Felipe Fred George Gustav Hamid Harry Henry Hugo Ilya Ivan Javier Jim Joe Jonah Kenji Kevin Kofi Leif Leo "
    "Lorenzo Malik Mark Martin Mateo Milan Mike Nikhil Noah Olaf Omar Oscar Pavel Peter Quentin Rafael Ravi Robert "
    "Roy Sam Simon Sven Tariq Tom Tony Victor Viktor Walter Will",
))  # fmt: skip
# Singular forms; data/arith.py makes the others, but for those after a slash. What follows " of " stays as it is.
NOUNS = table("""
toy badge|gas balloon|battery|bead|bell|bookmark|bow|bracelet|brush|button|calendar|candle|card|coin|comb|comic book|
  cup|cushion|doll|drum|envelope|flag|flute|fork|hat|headband|key|kite|lamp|lantern|magnet|map|marker|mask|medal|mug|
  napkin|necklace|notebook|paper clip|patch|pen|pillow|pin|pinwheel|plate|postcard|poster|puppet|puzzle|ribbon|ring|
  rock|ruler|seashell|scarf|sock|spoon|sponge|stamp|sticker|tile|ticket|token|towel|toy car|trading card|umbrella|vase|
  whistle|book|ball|game|toy|folder|sheet of paper|figure|stone|shell|leaf|robot|coupon|tape|wax crayon|rubber eraser|
  lead pencil|glass marble|wooden block|plastic bottle cap|gum wrapper|toy truck|toy soldier|baseball glove|soccer ball|
  paper plane|rope|wool shirt|silk tie|leather shoe|straw hat|gold earring|tin can|glass bottle|cotton bag|felt pen|
  party hat|sheet of music|roll of tape|pair of gloves|pair of shoes|deck of cards|stamp album|seed packet|garden tool|
  fish hook|bar of soap|box of matches|hair clip|skirt|jacket|belt|wallet|watch|clock|mirror|blanket|basketball|racket|
  paintbrush
fruit apricot|banana|cherry|fig|grape|guava|kiwi|lemon|lime|mango|melon|nectarine|orange|papaya|quince|pear|persimmon|
  plum|strawberry|blueberry|carrot|potato|turnip|onion|pepper|cucumber|pumpkin|walnut|olive|bean|garden apple|
  farm peach|island banana|mountain raspberry|blackberry|farm egg|tomato|coconut|pineapple|peanut|hazelnut|almond|
  mushroom|radish
treat bagel|brownie|bun|layer cake|wafer|cupcake|donut|hot dog|lollipop|muffin|pancake|pastry|pie|pizza|pretzel|roll|
  sandwich|scone|tart|waffle|biscuit|truffle|piece of toast|bar of chocolate|candy|burger|taco|loaf of bread|
  bag of chips|jar of jam|oat cookie|ginger cookie|rice cracker|sugar cookie|honey cake|carrot cake|gumdrop|caramel|
  jelly bean|fruit drop|piece of fudge|slice of bread|bar of candy|milk chocolate|box of cereal|cheese stick|sausage
animal alpaca|cow|cat|dog|donkey|duck|goat|hen|horse|lamb|llama|pig|pony|rabbit|turkey|chicken|frog
bird bird|crow|duck|owl|parrot|pigeon|sparrow|squirrel|swan|butterfly|bee|ant|frog|robin|monkey|gull|turtle
plant bush|daisy|fern|lily|oak|pine|rose bush|seedling|shrub|tree|tulip|vine|daffodil|maple tree|palm tree|garden rose|
  spring flower|walnut tree|sunflower|orchid|apple tree|lemon tree
people child/children|adult/adults|boy/boys|man/men|woman/women|college student/college students|
  neighbor kid/neighbor kids|friend/friends|camper/campers|teacher/teachers|visitor/visitors|guest/guests|
  customer/customers|tourist/tourists|dancer/dancers|player/players|singer/singers|worker/workers|nurse/nurses|
  scout/scouts|parent/parents|pupil/pupils|runner/runners
container bag|basket|bin|box|bucket|carton|case|chest|crate|sack|jar|tray|drawer|packet|pack|package|tub|tin|bowl|
  barrel|container|*hamper|*trunk|*pouch
stuff pound of flour|pound of sugar|cup of rice|spoon of sugar|bowl of flour|cup of milk|kilogram of rice|
  gallon of water|liter of water|liter of paint|pound of apples|foot of rope|yard of cloth|ounce of chocolate|
  bag of sand|gram of salt|bucket of water|pound of grapes|kilogram of potatoes|inch of ribbon|meter of wire|cup of oats
group team|group|row|line|set|*tent
place park|museum|zoo|library|pool|gym|fair|beach|market|cinema|theater|school|farm|hotel|*aquarium|*castle
page chapter|sheet|poem|story
pound pound
computer song|photo|video|message|game|picture|program|document|text file|phone app|work email|thank-you letter|folder|
  page
exercise sit-up|jump|lap|knee push-up|belly crunch/belly crunches|pull-up|squat|press-up
mile mile|kilometer
point point|goal
problem problem|math problem|riddle|exercise|question|puzzle
dish plate|dish|cup|bowl|glass|spoon|pan
drink glass of water|bottle of water|cup of tea|bottle of soda|can of soda|glass of milk|cup of coffee|bottle of juice|
  bottle of cola|bottle of lemon soda|carton of milk
hour hour|minute
study page of history homework|page of art homework|hour of history homework|hour of art homework
fish trout/trout|crab|shrimp/shrimp|eel
stone stone|brick|log
seat seat|chair|table
car car|truck|bike|van
money dollar
book book|magazine|comic book
""")
ADJECTIVES = table("""
toy red blue|green yellow|black white|purple orange|big small|large tiny|old new|dirty clean|shiny dull|striped plain|
  long short|heavy light|cheap expensive|thick thin|pink gray|red white|blue green|brown black|*wet dry
treat chocolate vanilla|crunchy soft|lemon strawberry|fresh stale|big small|plain spicy|round square|*mint almond
fruit juicy dry|red green|big small|sour sweet|fresh frozen|yellow red|good bad|*hard soft|*raw cooked
animal,bird black white|brown gray|big small|young old|*tame wild
plant red white|yellow pink|tall small|old young|*early late
page,problem,book old new|long short|funny sad|good bad|*odd plain
computer old new|big small|funny sad|good bad|*odd plain
""")
MEASURES = "pounds|cups|kilograms|gallons|liters|feet|yards|ounces|grams|inches|meters"  # some flour
KIN = "[brother|sister|mother|father|cousin|dad|mom|aunt|uncle|*grandfather|*neighbor|*roommate]"
TIMES = table("""
day on Monday/on Tuesday/on Wednesday|on Friday/on Saturday/on Sunday|yesterday/today/the day before|
  last week/this week/the week before|on the first day/on the second day/on the third day|
  *on Thursday/on Sunday/on Monday
part in the morning/in the afternoon/in the evening|before lunch/after lunch/after dinner|*at dawn/at noon/at dusk
month in March/in April/in May|in June/in July/in August|last year/this year/the year before|
  *in spring/in summer/in fall
game in the first match/in the second match/in the third match|in the first half/in the second half/in overtime|
  *before the break/after the break/in the last minutes
place at the park/at the beach/at the lake|at home/at school/at the library|*in the city/in the village/in the woods
shop at the market/at the bakery/at the mall|*in one shop/in another shop/in a third shop
""")

# Stories. First the name, which DOMAIN_LINES refer to (or, in brackets, what kinds it is about), how often it is
# drawn, and relations, each of which defines its left side; a sign ± is drawn. Then what can be told, in order: "?" may
# be left out, "!" is left out unless the answer needs it, a line with several letters is for when all of them are told,
# and what is not told, but may not be left out, becomes "some". Then questions, each after the letter of its answer.
# (a/b) stands for two lines.
STORY_BLOCKS = """
have 16: h = s ± x, e = h ± y, z = x - y, i = y - x
? {who} {had:@s {K}}
. [then |later ||*next, ]{who} {<x got|lost>:@x [<x more|>|] {K}}
. [then |later |after that, |*next, ||]{who} {<y got2|lost2>:@y [{K}|<y more|of those>||]}
? [now |now |in the end ||]{who} {has:<y |[just|only]> @e <y {K}|{left}>}
e [how many|how many|*what number of] {K} {does} {who} {have} [now|<y in all|left>|<y altogether|*still>|<y now|left>]
s how many {K} {aux} {who} {hold} [at first|at the start|in the beginning|to begin with|before that|*originally]
(x/y) how many {K} {aux} {who} {(<x get|lose>/<y get2|lose2>)}
z how many [more|more|*extra] {K} {aux} {who} {<x get|lose>} than {it} {<y got2|lost2>}
i how many [more|more|*extra] {K} {aux} {who} {<y get2|lose2>} than {it} {<x got|lost>}

have 18: e = s ± x, k = t ±x u, f = s - t, g = s + t, i = x - u, j = x + u, z = e - k, d = s - x
. {who} {had:@s {K} and @t {L}}
. {who} {had:@s {K}}
? {who} {had:@t {L}}
. [then |later |after that, |*next, ||]{who} {<x got|lost>:@x {K} and @u {L}}
. [then |later |after that, |*next, ||]{who} {<x got|lost>:@x [<x more|>|] {K}}
? [then |later ||*next, ]{who} {<x got|lost>:@u {L}}
? [now |now |in the end ||]{who} {has:[only |]@(e/k) {(K/L)}}
(e/k/e/e) [how many|how many|*what number of] {(K/L/K/K)} {does} {who} {have} [now|<x in all|left>|<x
  altogether|*still>]
(s/t/s) how many {(K/L/K)} {aux} {who} {hold} [at first|at the start|in the beginning|to begin with|*originally]
(x/u/x) how many {(K/L/K)} {aux} {who} {<x get|lose>}
(f/g) how many (more {K} than {L}/{K} and {L}) {aux} {who} {hold} [at first|at the start|in the beginning|*originally]
(i/j) how many (more {K} than {L}/{K} and {L}) {aux} {who} {<x get|lose>} [|in all]
z how many more {K} than {L} {does} {who} {have} <x now|left>
d how many more {K} {aux} {who} {hold} [|at first] than {it} {<x got|lost>}

have 4: g = s + t, m = g ± x, e = s ± x
. {who} {had:@s {K} and @t {L}}
. [then |later |]{who} {<x got|lost>:@x [<x more|>|] {K}}
g how many {K} and {L} {aux} {who} {hold} [at first|before that]
m how many {K} and {L} {does} {who} {have} <x in all|[left|now]>

packs 5 (toy treat fruit): v = a + b, w = v + c, p = b + c, d = a - b
. {P} [bought|has|found|*ordered] @a {C} of {K}, @b {C} of {L} and @c {C} of {M}
. {P} [bought|has|found|*ordered] @a {C} of {K} and @b {C} of {L}
. {P} [bought|has|found|*ordered] @(a/b/c) {C} of {(K/L/M)}
? {he} has @v {C} of {K} and {L} [in all|together]
? {he} has @w {C} [in all|altogether]
(v/p/w) how many {C} (of {K} and {L} /of {L} and {M} /)does {P} have [|now|in all|altogether]
(a/b/c) how many {C} of {(K/L/M)} does {P} have
d how many more {C} of {K} than of {L} does {P} have

need 6 (toy fruit stuff treat): n = a - c, o = b - e, v = n + o, d = a - b, f = c - e
. {P} needs @a {K} and @b {L} for [a party|a dish|the class|a project|*a bazaar]
. {P} needs @(a/b) {(K/L)} for [a party|a dish|the class|a project|*a bazaar]
. {he} [already |]has [got |]@c {K} and @e {L}
? {he} [already |]has [got |]@(c/e) {(K/L)}
(n/o/n) how many more {(K/L/K)} does {P} [need|have to get|*lack]
(d/f) how many more {K} than {L} does {P} (need in all/already have)
v how many {K} and {L} are [missing|still needed] in all

both 5 (toy fruit treat money): c = a + x, e = b + y, d = a - b, f = c - e, v = a + b, w = c + e
. {P} had @a {K} and {Q} had @b {K}
. {(P/Q)} had @(a/b) {K}
. [then they went to a shop|they [played|worked|traded] [all day|for a while]|they got some more], and now {P} has @c
  {K} and {Q} has @e
. [later|then] {P} got more, and now {he} has @c {K}
? now {Q} has @e {K}
(x/y) how many more {K} did {(P/Q)} get
(d/f) how many more {K} (did {P} have than {Q} at first/does {P} have than {Q} now)
(v/w) how many {K} (did they have together at first/do the two have now)

give 4: p = a - x, q = b + x, w = a + b, d = a - b
. {P} has @a {K}[, and {Q} has @b {K}|. {Q} has @b {K}|, while {Q} has @b]
. {(P/Q)} has @(a/b) {K}
. [then |later ||]{P} [gives|*hands|*passes] @x {K} to {Q}
? now {(P/Q)} has @(p/q) {K}
(p/q/b) how many {K} (does {P} have [left|now]/does {Q} have now/did {Q} have [at first|before that])
(w/d) how many (/more ){K} (do they/did {P}) have (together/than {Q} at first)

who 16: b = a ± d, c = b ± f, v = a + b, w = v + c, p = b + c, q = a + c, r = c - a
? {P} {did:@a {K}} {t1}, {Q} {did:@b [|{K}]} and {R} {did:@c}
? {P} {did:@a {K}} {t1}, and {Q} {did:@b [|{K}]}
? {(P/Q/R)} {did:@(a/b/c) {K}} {t1}
? {Q} {did:@d <d more|fewer> {K}} than {P} and @f <f fewer|more> than {R} {t1}
? {(Q/R)} {did:@(d/f) <(d/f) more|fewer> {K}} than {(P/Q)} {t1}
? [together |in all ]{P} and {Q} {doing:@v {K}}
(a/b/c) how many {K} {aux} {(P/Q/R)} {do} {t1}
(d/f/d) how many <(d/f/d) more|fewer> {K} {aux} {(Q/R/Q)} {do} [than|than|compared to] {(P/Q/P)}
d how many <d fewer|more> {K} {aux} {P} {do} {t1} than {Q}
r how many more {K} {aux} {R} {do} than {P}
(v/p/q/v) how many {K} {aux2} {(P/Q/P/P)} and {(Q/R/R/Q)} {do} [together|in all|altogether|*combined]
w how many {K} {aux2} they {do} [together|in all|altogether|in total|*combined]

pairs 7: c = a ± d, e = b ± f, v = a + b, w = a + c, z = b + e, i = a - b
. {P} {did:@a {K} and @b {L}} {t1}
. {P} {did:@(a/b) {(K/L)}} {t1}
? {Q} {did:@d <d more|fewer> {K} [and|but] @f <f more|fewer> {L}} than {P}
? {Q} {did:@(d/f) <(d/f) more|fewer> {(K/L)}} than {P}
? {Q} {did:@(c/e) {(K/L)}} {t1}
(a/b/c/e) how many {(K/L/K/L)} {aux} {(P/P/Q/Q)} {do} {t1}
(v/i) how many ({K} and/more {K} than) {L} {aux} {P} {do}
(w/z) how many {(K/L)} {aux2} {P} and {Q} {do} [together|in all|altogether]

who 2: b = a * d, v = a + b, r = b - a
? {(P/Q)} {did:@(a/b) {K}} {t1}
? {Q} {did:@d times as many {K}} as {P} {t1}
(a/b/r) how many (//more ){K} {aux} {(P/Q/Q)} {do} (//than {P})
d how many times as many {K} as {P} {aux} {Q} {do}
v how many {K} {aux2} they {do} [together|in all|altogether|in total|*combined]

when 16: b = a ± d, c = b ± f, v = a + b, w = v + c, p = b + c, q = a + c, r = c - a
? {P} {did:@a {K}} {t1}, @b {t2} and @c {t3}
? {P} {did:@a {K}} {t1} and @b [{K} |]{t2}
? {P} {did:@(a/b/c) {K}} {(t1/t2/t3)}
? {P} {did:@(d/f) <(d/f) more|fewer> {K}} {(t2/t3)} than {(t1/t2)}
? {t1} and {t2} together {P} {did:@v {K}}
(a/b/c) how many {K} {aux} {P} {do} {(t1/t2/t3)}
(d/f/d) how many <(d/f/d) more|fewer> {K} {aux} {P} {do} {(t2/t3/t2)} [than|than|compared to] {(t1/t2/t1)}
d how many <d fewer|more> {K} {aux} {P} {do} {t1} than {t2}
r how many more {K} {aux} {P} {do} {t3} than {t1}
(v/p/q/v) how many {K} {aux} {P} {do} {(t1/t2/t1/t1)} and {(t2/t3/t3/t2)} [|in all|altogether]
w how many {K} {aux} {P} {do} [in all|altogether|in total|*all in all]

what 16: b = a ± d, c = b ± f, v = a + b, w = v + c, p = b + c, q = a + c, r = c - a
? {P} {did:@a {K}, @b {L} and @c {M}} {t1}
? {P} {did:@a {K} and @b {L}} {t1}
? {P} {did:@(a/b/c) {(K/L/M)}} {t1}
? {P} {did:@(d/f) <(d/f) more|fewer> {(L/M)} than {(K/L)}} {t1}
? {P} {did:@v {K} and {L} [in all|altogether]} {t1}
(a/b/c) how many {(K/L/M)} {aux} {P} {do} {t1}
(d/f/d) how many <(d/f/d) more|fewer> {(L/M/L)} than {(K/L/K)} {aux} {P} {do}
d how many <d fewer|more> {K} than {L} {aux} {P} {do}
r how many more {M} than {K} {aux} {P} {do}
(v/p/q/v) how many {(K/L/K/K)} and {(L/M/M/L)} {aux} {P} {do} [in all|altogether|in total|*all in all]

grid 6: v = a + b, p = a + c, q = b + e, d = a - b, f = c - a, r = e - b
. {P} {did:@a {K} and @b {L}} {t1}
. {P} {did:@(a/b) {(K/L)}} {t1}
. [and ||]{he} {did:@c [more |]{K} and @e [more |]{L}} {t2}
. {P} {did:@(c/e) {(K/L)}} {t2}
(v/d) how many ({K} and/more {K} than) {L} {aux} {P} {do} {t1}
(p/q) how many {(K/L)} {aux} {P} {do} [in all|altogether|in total]
(f/r) how many more {(K/L)} {aux} {P} {do} {t2} than {t1}

size 12: b = a ± d, c = b ± f, v = a + b
? {(X/Y/Z)} {did:@(a/b/c) {unit} {tall}}
? {(Y/Z)} {did:@(d/f) {unit} <(d/f) {more}|{less}>} than {(X/Y)}
(a/b/c) how [{how}|many {unit} {tall}] {aux} {(X/Y/Z)} {do}
d how many {unit} <d {more}|{less}> {aux} {Y} {do} than {X}
d how many {unit} <d {less}|{more}> {aux} {X} {do} than {Y}

parts 8: w = a + b, a = b + d
. there are @a {A} and @b {B} {at}
? there are @w {N} {at}[, and|. of them|. of these] @(a/b) are {(A1/B1)}
? there are @(w/a/b) {(N/A/B)} {at}
? {at} there are @d more {A} than {B}
(a/b) how many {(A/B)} are there [|{at}]
w how many {N} are there {at} [|in all|altogether|in total|*all told]
d how many more {A} than {B} are there [|{at}]

group 12 (toy fruit treat): t = n * m, w = t + r, v = t - s, p = t - n
. [there are @n {C} with @m {K} in each {c}|{P} has @n {C} of {K}. each {c} [holds|contains|has] @m {K}]
. [each {c} [holds|contains] @m {K}. {P} has @n {C}|{P} filled @n {C} with @m {K} each|*{P} bought @n {C}, each of them
  with @m {K}]
. [{P} has @t {K}. {he} puts @m {K} in each {c}|{P} packs @t {K} into {C} with @m {K} in each|*@t {K} fill some {C}, @m
  to a {c}]
. [each {c} holds @m {K}. there are @t {K} [in all|in total]|the @t {K} are [organized|split|sorted] into {C} of @m {K}]
. [{P} puts @t {K} into @n {C} with the same number in each|there are @t {K} in @n {C}, equally many in each|*@n equal
  {C} hold @t {K}]
. {P} has @n {C} with the same number of {K} in each and @t {K} [in all|altogether]
! [{P} [also has|finds|has|*keeps] @r [more|loose|other|extra] {K}|@r {K} [are|lie] [on the table|elsewhere]]
! @s of the {K} are [broken|lost|taken out|given away|sold|bad|*missing]
t how many {K} [are there|does {P} have] inside the {C} [|in all|altogether]
n how many {C} [are there|are needed|can be filled|*does that make]
m how many {K} [are in|are in|does {P} put in|*go into] each {c}
(w/v/p) how many (//more ){K} (are there [in all|altogether]/[are left|remain]/than {C} are there)

share 8 (toy treat fruit): t = n * m, w = t + r, k = m - e, v = a + b, g = v / n, i = a / n
. [{P} gave @m {K} to each of the @n [guests|cousins]|@n [friends|children] got @m {K} each from {P}|*each of @n cousins
  got @m {K}]
. [{P} gave @m {K} to each of {his} friends. {he} gave away @t {K} in all|{P} shared @t {K} among some friends, who got
  @m {K} each]
. [{P} shared @t {K} [equally|evenly] among @n friends|{P} gave equal numbers of {K} to [the|{his}] @n [guests|cousins].
  {he} gave away @t {K} in all]
. [@n [children|friends] share @t {K} equally|*@t {K} were divided evenly between @n cousins]
. [{P} gave equal numbers of {K} and {L} to [the|{his}] @n [guests|cousins]. {he} had @a {K} and @b {L} [at first|]|{P}
  has @a {K} and @b {L}. {he} [shares|divides] them equally among [the|{his}] @n [guests|friends]]
! {P} [kept @r {K}|still had @r left]
! [everyone|each of them] [used|lost|*gave back] @e of them
(t/n/m) how many ({K} were given away [in all|altogether]/[friends|people] got {K}/{K} did each of them get)
(w/k/g/i) how many ({K} did {P} have [at first|in the beginning]/{K} does each of them have left/{K} and {L} does each
  friend get/{K} does each friend get)

price 11 (toy treat fruit): t = n * m, g = h * o, r = c + t, q = m - e, w = t + f, i = n - j, a = b + n
. [{P} buys @n {K} and @h {L}. each {k} costs @m dollars and each of the {L} costs @o dollars|the shop makes @m dollars
  off each {k} and @o dollars off each of the {L}. it sold @n {K} and @h {L}]
. [{P} [buys|bought] @n {K} for @m dollars each|each {k} costs @m dollars. {P} [buys|bought] @n {K}|*{P} took @n {K} at
  @m dollars apiece]
. [{P} paid @t dollars for {K} that cost @m dollars each|each {k} costs @m dollars. {P} [spent|paid] @t dollars on {K}]
. [{P} paid @t dollars for @n {K}|{P} bought @n {K} for @t dollars, each at the same price|*a set of @n {K} was sold for
  @t dollars]
. each {k} costs @m dollars. {P} bought @i {K} [on Monday|in the morning] and @j [on Tuesday|in the evening]
. there were @a {K} in the shop for @m dollars each. {P} bought some of them, and now @b {K} are left
! [{P} [had|took|came with] @r dollars|[each {k} is @e dollars off|the price of each {k} is lowered by @e dollars]]
! {P} [also|then] [bought|paid for] a [bag|hat|book|drink|*map] for @f dollars
(t/g/n/m) how (much are the {K} [|in all]/much are the {L} [|in all]/many {K} did {P} buy/much [did each {k} cost|is one
  {k}])
t how much did {P} [spend|pay|*hand over] [for|on] the {K}
(c/q/w) how much (money does {P} have left/[does each {k} cost|do you pay for each {k}] [now|then]/did {P} spend in all)

sell 3 (toy treat): t = n * m, p = t - f
. [{P} [sells|sold] @n {K} for @m dollars each|the shop makes @m dollars off each {k}. it sold @n {K}|*@n {K} went for
  @m dollars a piece]
. [{P} sold {K} for @m dollars each and made @t dollars|the shop makes @m dollars off each {k}. it made @t dollars
  [by|from] selling {K}]
. [{P} sold @n {K} and made @t dollars|the shop made @t dollars by selling @n {K}|*@n {K} brought in @t dollars]
! the [stall|table|ad] cost @f dollars
(t/n/m) how (much was made [in all|altogether|]/many {K} were sold/much was made off each {k})
p how much money was left after that

wage 5 (money): t = n * m, w = t - r, q = m - e, g = n * q
. {P} earns @m dollars [a|every|each|per] {i}. {he} works for @n {i}s
. {P} worked [for ||]@n {i}s at @m dollars [a|per] {i}
. {P} earns @m dollars [a|every|each|per] {i}. {he} made @t dollars [in all|from {his} work]
. {P} [earned|made] @t dollars in @n {i}s, the same each {i}
! {he} spent @r dollars [of it|on rent|on food]
! {he} pays @e dollars [every|each|per] {i} for [food|the bus|*tools]
t how [much money|many dollars] [did|does] {P} [earn|make|get] [|in all|altogether]
n [how many {i}s|for how many {i}s] did {P} work
m how much [does|did] {P} [earn|make] [each|per|every] {i}
(w/q/g) how much [money |]does {P} (have left/keep each {i}/keep in all)

daily 8 (study exercise problem drink): t = n * m, u = j * o, w = t + r, a = b + t
. {P} [did|had|finished] @t {K} in the first @n days and @u {K} in the [next|remaining|last] @j days
. {P} had @t {K} and @u {L}. {he} [uses|finishes] @m {K} and @o {L} [a|every|each|per] day
. [{P} [has|does|finishes|gets through] @m {K} [a|every|each|per] day on @n days|*over @n days {P} deals with @m {K}
  daily]
. [{P} [does|has|finishes] @m {K} [a|every|each|per] day. {he} has @t {K}|with @m {K} a day {P} gets through @t {K}]
. [{P} [did|had|finished] @t {K} in @n days|in @n days {P} got through @t {K}, the same number [each|every] day|*@t {K}
  took {P} @n days]
! [on the last day|today] {P} has @r {K} more
! {P} had @a {K} [|at first]
(t/w/b) how many {K} (is that [in all|altogether]/does {P} have in all/are left)
n [how many days does [it take|{P} need]|how [long|many days] do the {K} last|*how many days go by]
m how many {K} [did {P} finish|did {he} finish|does {P} get through] [each|per|every] day
n how many days would the {K} last
j how many days would the {L} last

machine 5 (toy treat): t = n * m, i = n - j, u = t - v, w = t - r
. a machine [makes|can make] @m {K} [a|per|each|every] minute. it [was on|ran] for @n minutes
. the [factory|workshop|baker|*printer] makes @m {K} [an hour|per hour] for @n hours
. a machine [makes|can make] @m {K} [a|per|each|every] minute. it made @t {K} [in all|today|yesterday]
. [a machine made @t {K} in @n minutes|it took a machine @n minutes to make @t {K}|*in @n minutes @t {K} came out of the
  machine]
. a machine [makes|can make] @m {K} [a|per] minute. it [was on|ran] for @i minutes [yesterday|on Monday] and @j minutes
  [today|on Tuesday]
. a machine made @u {K} [yesterday|on Monday] and @v {K} [today|on Tuesday]. it [makes|can make] @m {K} [a|per] minute
! @r of the {K} were [broken|bad|thrown away]
(t/w/m) how many (/good /){K} (did it make [in all|altogether|]/did it make/does it make [a|per|each] minute)
n [how long|for how many minutes|how many minutes] did it work [|in all]

seats 8 (people plant toy): t = n * m, w = t - r, v = t + s, u = t - a
. [there are @n {G} [of|with] @m {K} [|each]|@m {K} are in each of the @n {G}|*@n {G} take @m {K} each]
. [@t {K} [form|make up|are split into|fill] {G} of @m|there are @t {K}. each of the {G} has @m {K}|*{G} for @m {K} take
  @t {K}]
. [@t {K} are split into @n equal {G}|@t {K} [form|make up|fill] @n {G} of the same size|@n {G} have @t {K}, the same
  number in each]
. @u of the {K} are [new|for {him}] and the other @a are not. they [make|form] {G} of @m
! @r [of the {K}|{K}] are [taken away|no longer there]
! @s {K} [come late|have no place|are added]
(t/n/m) how many ({K} are there [|altogether]/{G} are [there|needed]/{K} are in each of the {G})
(w/v) how many {K} are (left/there [in all|altogether])

each 13: t = n * m, g = n * o, s = m + o, w = n * s, p = t - n, q = t - r, k = t / f, u = t - i
. [there are @n {H}. each {h} {has} @m {K} and @o {L}|each {h} {has} @m {K} and @o {L}[, and there are|. {P} has] @n
  {H}]
. [there are @n {H}. each {h} {has} @m {K}|each {h} {has} @m {K}[, and there are|. {P} has] @n {H}|there are @n {H} with
  @m {K} [in|for] each|{P} has @n {H} of {K}. each {h} {has} @m {K}|*{P} saw @n {H}, each of them with @m {K}]
. [{P} has @t {K}[. each| and each] {h} {has} @m {K}|each {h} {has} @m {K}. there are @t {K} [in all|in total]|*@t {K}
  fill some {H}, @m to a {h}]
. [there are @n {H} [with|of] the same [number|amount] of {K} and @t {K} [in all|altogether]|@n {H} {hold} @t {K} [in
  all| altogether], [the same number|equally many] each|*@n equal {H} {hold} @t {K}]
! @r of the {K} are [lost|gone|missing|*elsewhere]
! @i places are [taken|not free] now
! {P} puts the {K} in rows of @f
(t/t/g) how many {(K/K/L)} [are there|does {P} count] [altogether|in total]
(n/m) how many ({H} [are there|are needed|does {P} have]/{K} does each {h} {holds})
(s/w) how many {K} and {L} (does each {h} {holds}/are there [in all|altogether])
(p/q/k/u) how many (more {K} than {H} are there/{K} are left/rows of {K} does {P} get/more {K} have a place)

each 4: t = n * m, g = j * o, s = n + j
. there are @n {A1} {H} and @j {B1} {H}. each {A1} {h} {has} @m {K} and each {B1} {h} {has} @o {K}
(t/g) how many {K} are [there|needed] for the {(A1/B1)} {H}
s how many {H} are there [in all|altogether]

*dishes 3 (dish): t = n * m, w = t - r
. @n stacks of @m {K} stand in the kitchen
. {P} makes stacks of @m {K} from @t {K}
. @t {K} stand in @n equal stacks
! @r {K} fall down and break
(t/n/m/w) how many ({K} are there/stacks are there/{K} are in a stack/{K} are left)

*recipes 3 (stuff): t = n * m, w = t + r
. each of @n [recipes|jobs] takes @m {K}
. there are @t {K}. each recipe takes @m {K}
. @n equal [recipes|jobs] take @t {K}
! @r {K} are spilled
(t/n/m/w) (how many {K} are needed/for how many recipes is that enough/how many {K} does each take/how many {K} are
  gone)
"""

# Who does what with what: which stories a line is for, the kinds, and its slots. A verb is past/base, ~ its object;
# what stands behind " / " may be left out of a question. Lines with + and - are what comes and what goes.
DOMAIN_LINES = """
have (toy): who {P}; had had/have ~ / [in a box|in {his} room|on {his} desk|in {his} collection|*in the attic|]
+ found/find ~ / [at the park|on the way to school|under the bed|*in the garage] & bought/buy ~ / [at the store|at a
  sale|*online]
+ got/get ~ from {Q} & received/receive ~ / from {his} [mother|father|aunt] & won/win ~ / at the fair &
  collected/collect ~ & made/make ~
+ *borrowed/borrow ~ from {Q} & *picked/pick up ~ / in town
- lost/lose ~ / [at school|on the tram|at the beach|*in the woods] & gave/give ~ to {Q} & gave/give away ~ & sold/sell ~
  / at the market
- threw/throw away ~ & broke/break ~ & used/use ~ / for a project & left/leave ~ at home & put/put ~ in a {c}
- *donated/donate ~ to the school & *traded/trade away ~ & *lent/lend ~ to {Q}

have (fruit treat): who {P}; had had/have ~ / [in the kitchen|in a bag|*in the fridge|]
+ bought/buy ~ / [at the store|at the market|*at the corner shop] & got/get ~ from {Q} & made/make ~ & baked/bake ~ &
  brought/bring home ~
+ picked/pick ~ & *ordered/order ~
- ate/eat ~ / [for lunch|for breakfast|after school|*on the way] & gave/give ~ to {Q} & shared/share ~ with {his}
  friends & dropped/drop ~
- ate/eat ~ & sold/sell ~ & used/use ~ for a salad & *served/serve ~ / to the guests & *burned/burn ~

have (treat): who the [baker|cafe|bakery|*cook]; had [had/have|made/make] ~ / [|on the shelf|*in the window]
+ made/make ~ & bought/buy ~ & received/receive ~ & *ordered/order ~
- sold/sell ~ / [in the morning|by noon|*to a school] & threw/throw away ~ & gave/give away ~ & *used/use up ~

have (fruit toy treat): who the [shop|store|grocery store|market|*kiosk]; had had/have ~ / [|on the shelf|*in the
  window]
+ bought/buy ~ & received/receive ~ / from a farm & got/get ~ & *ordered/order ~
- sold/sell ~ / [in the morning|by noon|*to a school] & threw/throw away ~ & gave/give away ~ & lost/lose ~ / in a fire
  & *used/use up ~

have (animal fruit): who the [farmer|*rancher]; had had/have ~ / [in the barn|on the farm|*in the stable]
+ bought/buy ~ / [at the market|from a neighbor] & raised/raise ~ & got/get ~ from {Q}
- sold/sell ~ / [at the market|*to a zoo] & lost/lose ~ / in a storm & gave/give ~ to {Q}

have (money): who {P}; had had/have ~ / [in {his} wallet|in the bank|in a jar|*in {his} purse|]
+ earned/earn ~ / [by washing cars|for chores|*as a waiter] & got/get ~ from {Q} & received/receive ~ / for {his}
  birthday
+ found/find ~ / in a coat & collected/collect ~ & *made/make ~ / by selling lemonade
- spent/spend ~ / on [a book|lunch|shoes|a toy|a ticket|clothes|food|*a haircut|*medicine] & gave/give ~ to {Q}
- paid/pay ~ / for [a shirt|a bag|a meal|*repairs] & lost/lose ~ & spent/spend ~ & *donated/donate ~ / to a shelter

have (stuff): who {P}; had had/have ~ / [at home|in the kitchen|*in the pantry]
+ bought/buy ~ / at the store & got/get ~ from {Q} & *ordered/order ~
- used/use ~ / [for a cake|for dinner|*for a stew] & gave/give ~ to {Q} & spilled/spill ~ & sold/sell ~

have (computer): who {P}; had had/have ~ on {his} [tablet|computer|*laptop]
+ added/add ~ & downloaded/download ~ & got/get ~ from {Q} & *installed/install ~
- deleted/delete ~ / by mistake & removed/remove ~ & lost/lose ~ & *erased/erase ~

have (book toy): who the [library|museum|school|*archive]; had had/have ~ / [|on display|in the hall|*in the cellar]
+ bought/buy ~ & received/receive ~ / as a gift & *acquired/acquire ~
- lost/lose ~ / in a flood & lent/lend ~ to {Q} & sold/sell ~ & threw/throw away ~ & *gave/give ~ to a school

have (pound): who {P}; had weighed/weigh ~; have weigh; has weighs ~; left pounds
+ gained/gain ~ / [over the winter|on a trip|*on holiday] & put/put on ~
- lost/lose ~ / [by jogging|*on a diet] & lost/lose ~ / in the [first|second] month & *worked/work off ~

have (people): had there were ~ [on the tram|on the train|in the room|in the {place}|in the class|in line|*on the boat]
+ ~ came along & ~ arrived & ~ joined & ~ got on & *~ showed up
- ~ left & ~ went home & ~ got off & ~ walked out & *~ fell asleep

have (bird animal): had there were ~ [in a tree|on the wall|in the field|on the roof|by the pond|*on the lawn]
+ ~ came to the others & ~ arrived & ~ came along & *~ settled there
- ~ went away & ~ left & ~ ran off & *~ moved on

have (plant): had there were ~ [in the garden|in the park|in the yard|along the street|*behind the church]
+ ~ were planted [|by {him}] & ~ were added & *~ were set out
- ~ died [|in a storm] & ~ were cut down & ~ fell down [|in the wind] & *~ dried up

have (toy fruit treat): had there were ~ [in the {c}|on the table|on the shelf|in the drawer|*on the counter]
+ ~ were added & ~ were laid there & ~ were put there by {him} & *~ were dropped in
- ~ were taken out [|by {him}] & ~ were taken away & ~ were removed & *~ were stolen & *~ were carried off

*have (toy stuff): who the [tailor|painter|carpenter]; had had/have ~ / in the workshop
+ bought/buy ~ & ordered/order ~
- used/use ~ / for an order & sold/sell ~ & wasted/waste ~

*have (page): who {P}; had had/have ~ to read
+ got/get ~ from the teacher & found/find ~
- finished/finish ~ & skipped/skip ~

*have (people): had there were ~ [at the party|at the meeting]
+ ~ turned up & ~ came back
- ~ said goodbye & ~ had to leave

give who (toy fruit treat): did has/have ~; aux does; aux2 do
who (animal): did has/have ~ [in the yard|on the farm|*in the barn]; aux does; aux2 do
who (money): did has/have ~; aux does; aux2 do
who when what pairs grid (toy fruit treat): did bought/buy ~; times day shop
who when what pairs grid (fruit): did picked/pick ~; times day part
who when what pairs grid (toy): did [found/find|collected/collect] ~; times day place
who when what pairs grid (treat fruit): did ate/eat ~; times day part
who when what pairs grid (toy treat fruit): did sold/sell ~; times day part month
who when what pairs grid (treat toy): did [made/make|*painted/paint] ~; times day part
who when what pairs grid (treat): did baked/bake ~; times day
who when what pairs (study): did [had/have|finished/finish|*did/do] ~; times day part
who when what pairs (page): did [read/read|had/have|*wrote/write] ~; times day part
who when (point): did [got/get|shot/shoot] ~; times game
who when what pairs (exercise): did did/do ~; times day part
who when (mile): did [ran/run|walked/walk|drove/drive|*hiked/hike] ~; times day
who when (money): did [saved/save|earned/earn|spent/spend|made/make|*donated/donate] ~; times day month
who when what pairs grid (computer): did [got/get|sent/send|*wrote/write] ~; times day
who when what pairs grid (bird animal): did saw/see ~; times day place
who when (people): did [met/meet|invited/invite|*taught/teach] ~; times day place
who when what pairs grid (plant): did planted/plant ~; times day month
who when what pairs (problem): did solved/solve ~; times day part
who when what pairs (dish): did washed/wash ~; times day part
who when what pairs grid (drink): did drank/drink ~; times day part
who when (hour): did [worked/work|slept/sleep|*waited/wait] ~; times day
who when what pairs grid (toy): did won/win ~; times game
who when (stuff): did used/use ~; times day month
*who when what pairs grid (bird toy): did counted/count ~; times day place
*who when what pairs (fish): did caught/catch ~; times day part
*who when (stone): did lifted/lift ~; times day

size (toy): XYZ {P}/{Q}/{R}; did jumped/jump ~; aux did; unit inches; how far; tall ; more farther; less less
size (toy): XYZ {P}/{Q}/{R}; did weighs/weigh ~; aux does; unit [pounds|kilograms]; how much; tall ; more more; less
  less
size (toy): XYZ {P}/{Q}/{R}; did is/ ~; aux is; unit [years|months]; how old; tall old; more older; less younger
size (toy): XYZ {P}/{Q}/{R}; did is/ ~; aux is; unit [inches|*centimeters]; how tall; tall tall; more taller; less
  shorter
size (toy): XYZ {P}/{Q}/{R}; did [ran/run|slept/sleep|*waited/wait] for ~; aux did; unit [minutes|hours]; how long; tall
  ; more longer; less less
size (toy): XYZ the red box/the blue box/the green box & the table/the chair/the lamp & *the tent/the pole/the flag; did
  weighs/weigh ~; aux does; unit [pounds|kilograms|*grams]; how much; tall ; more more; less less
size (toy): XYZ the old tree/the young tree/the bush & the house/the barn/the shed & *the post/the wall/the gate; did
  is/ ~; aux is; unit [feet|meters]; how tall; tall tall; more taller; less lower
each (toy fruit treat): Hh {C}/{c}; has [has|holds|contains]; hold hold; holds hold
each (toy plant): Hh rows/row & boxes/box & tables/table & shelves/shelf & *racks/rack; has has; hold have; holds have
each (people): Hh seats/seat & tables/table & rooms/room & cars/car & buses/bus & *boats/boat; has [holds|can hold];
  hold hold; holds hold
each (toy stone drink): Hh necklaces/necklace & planks/plank & walls/wall & tents/tent & *fences/fence; has
  [needs|takes]; hold take; holds [need|take]
each (page problem): Hh books/book & courses/course & lessons/lesson & *letters/letter; has has; hold have; holds have
each (toy animal): Hh houses/house & schools/school & farms/farm & blocks/block & *villages/village; has has; hold have;
  holds have
parts (people): at [in the class|in the club|at the party|on the tram|in the program|*in the choir]; AB
  dancers/singers & children/adults & parents/pupils & men/women & *tenors/sopranos; A {A1}; B {B1}; N people
parts (toy treat fruit): at [in the {c}|in {P}'s {c}|on the table|*in the window]
parts (animal): at [on the farm|in the barn|in the field|*in the pen]
parts (seat): at [in the hall|on the tram|*in the tent]; AB taken/empty & reserved/free; A {A1} seats; B {B1} seats
parts (plant): at [in the garden|in the field|in the yard|*in the park]
*parts (car): at in the garage
"""

ASIDES = (
    "{P}'s [neighbor|teacher|boss] has @l {D} & there are @l {D} in the [shop|next room] & {P} is @l years old & it "
    "took {him} @l [minutes|hours|days] & the [bag|box] weighs @l pounds & the [shop|place] is @l miles away & {P} "
    "has @l [cousins|fish|plants] & {he} [has|had] @l dollars [in {his} pocket|with {him}] & that was @l "
    "[days|weeks] ago & it cost @l dollars & {Q} has @l [pens|books|cards] & {his} [house|school] is @l years old & "
    "there are @l [chairs|windows|doors] in the room & *the bus arrives in @l minutes & *{P} lives on floor @l & "
    "*@l people were watching & *the door number is @l"
)
OPENINGS = (
    "{P} [likes|loves|collects] {K} & it was [a warm|a rainy|a busy|a long] day & {P} and {his} "
    "[friend|sister|dad|mom|brother] were [busy|at home|on a trip] & {P} was [helping {his} mother|getting ready "
    "for a party|cleaning {his} room] & today is {P}'s birthday & *the weekend was near & *{P} had nothing else to "
    "do & *{P} was tired"
)
