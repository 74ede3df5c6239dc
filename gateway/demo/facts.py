"""The small tables the demo corpus is built from.

`pairs.py` turns each table into questions, answers and plain sentences. Nothing here is
random and nothing here knows about tokens. A fact that is also in `questions.json` must be
worded alike there; `corpus.py` refuses to run when one question has two answers.
"""


def table(text: str) -> dict[str, str]:
    """`left:right` pairs separated by bars."""
    return dict(pair.split(":") for pair in text.split("|"))


CAPITALS = table(
    "France:Paris|Germany:Berlin|Italy:Rome|Spain:Madrid|Portugal:Lisbon|Austria:Vienna|Belgium:Brussels|"
    "Denmark:Copenhagen|Sweden:Stockholm|Norway:Oslo|Finland:Helsinki|Poland:Warsaw|Greece:Athens|"
    "Ireland:Dublin|Hungary:Budapest|Romania:Bucharest|Bulgaria:Sofia|Croatia:Zagreb|Serbia:Belgrade|"
    "Ukraine:Kyiv|Russia:Moscow|Turkey:Ankara|Iceland:Reykjavik|Switzerland:Bern|the Netherlands:Amsterdam|"
    "the United Kingdom:London|the United States:Washington|Canada:Ottawa|Mexico:Mexico City|Cuba:Havana|"
    "Brazil:Brasília|Argentina:Buenos Aires|Chile:Santiago|Peru:Lima|Colombia:Bogotá|Venezuela:Caracas|"
    "Ecuador:Quito|Uruguay:Montevideo|Egypt:Cairo|Morocco:Rabat|Algeria:Algiers|Tunisia:Tunis|Kenya:Nairobi|"
    "Nigeria:Abuja|Ghana:Accra|Ethiopia:Addis Ababa|Senegal:Dakar|Japan:Tokyo|China:Beijing|India:New Delhi|"
    "South Korea:Seoul|Thailand:Bangkok|Vietnam:Hanoi|Indonesia:Jakarta|Nepal:Kathmandu|Pakistan:Islamabad|"
    "Iran:Tehran|Iraq:Baghdad|Israel:Jerusalem|Australia:Canberra|New Zealand:Wellington|the Philippines:Manila"
)

OPPOSITES = table(
    "hot:cold|big:small|day:night|good:bad|up:down|left:right|open:closed|fast:slow|old:new|long:short|"
    "light:dark|happy:sad|full:empty|hard:soft|wet:dry|rich:poor|early:late|high:low|in:out|strong:weak|"
    "clean:dirty|loud:quiet|near:far|first:last|begin:end|buy:sell|win:lose|push:pull|true:false|thick:thin"
)

PLURALS = table(
    "mouse:mice|child:children|foot:feet|tooth:teeth|man:men|woman:women|goose:geese|sheep:sheep|fish:fish|"
    "leaf:leaves|knife:knives|wolf:wolves|city:cities|baby:babies|box:boxes|bus:buses|cat:cats|dog:dogs|"
    "book:books|tree:trees|house:houses|river:rivers|apple:apples|potato:potatoes|tomato:tomatoes"
)

SOUNDS = table(
    "cat:meow|dog:woof|cow:moo|sheep:baa|duck:quack|pig:oink|horse:neigh|lion:roar|bee:buzz|snake:hiss|"
    "frog:ribbit|owl:hoot|chicken:cluck|wolf:howl"
)

BABIES = table(
    "dog:puppy|cat:kitten|cow:calf|sheep:lamb|horse:foal|pig:piglet|duck:duckling|goose:gosling|bear:cub|"
    "frog:tadpole|chicken:chick|goat:kid"
)

LEGS = table(
    "spider:eight|dog:four|cat:four|cow:four|horse:four|bird:two|bee:six|ant:six|human:two|snake:no|chicken:two"
)

COLOURS = table(
    "the sky:blue|grass:green|snow:white|coal:black|the sun:yellow|blood:red|milk:white|a lemon:yellow|"
    "a tomato:red|a banana:yellow|chocolate:brown|the sea:blue|a frog:green|a carrot:orange|a leaf:green|"
    "salt:white|an elephant:grey|a flamingo:pink"
)

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
MONTH_LENGTHS = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
SMALL_NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
).split()
NUMBER_WORDS = SMALL_NUMBERS + ["twenty-" + word for word in SMALL_NUMBERS[1:10]] + ["thirty"]

NAMES = (
    "Anna Ben Clara David Emma Felix Greta Hugo Ida Jonas Karin Leo Maria Nora Oscar Paula Rosa Sam Tom Vera "
    "Ada Alan Grace Linus Lena Max Mia Noah Olga Peter Ruth Sofia Theo Zoe Amir Chen Fatima Kenji Priya Yuki"
).split()

# Words for copying, spelling and unanswerable questions.
NOUNS = (
    "river apple cat dog tree house mountain sea star moon sun bird fish stone cloud road garden window door table "
    "chair book letter picture song story king queen bridge ship train car lamp clock key box bottle cup spoon bread "
    "cheese butter milk water fire wind rain snow field forest island village city market school teacher doctor "
    "farmer baker painter writer soldier child mother father brother sister friend horse cow sheep wolf fox bear owl "
    "bee ant spider frog snake lion tiger mouse flower leaf root seed grass rose paper pencil hat coat shoe ring coin "
    "gold silver iron glass wood wall roof floor mirror engine wheel rocket robot computer server network cable "
    "memory kernel token worker gateway model planet ocean desert valley tower castle ball game dream voice mat"
).split()
ADJECTIVES = (
    "blue red green yellow black white brown purple orange grey small big little large old new young long short tall "
    "bright dark quiet loud soft hard warm cold hot cool fast slow happy sad brave clever kind gentle lazy busy "
    "strange plain heavy light sweet sour round square wide narrow deep early late clean dusty empty full golden "
    "silent wild calm hungry sleepy broken shiny"
).split()
VERBS = (
    "sat runs jumps sleeps sings flies walks waits grows falls shines burns turns hides swims reads writes works "
    "plays laughs looks stands drives moves stops starts"
).split()
PLACES = ["on the " + noun for noun in NOUNS[:60]] + ["in the " + noun for noun in NOUNS[60:]]

SPELLING = (
    "cat dog river apple tree house book water stone bird fish star moon sun table chair window garden bread milk "
    "fire wind rain snow horse cow sheep wolf fox bear owl bee frog lion mouse flower leaf paper train ship king "
    "queen robot model token worker gateway server kernel green blue red hello world"
).split()

SYSTEM_MESSAGES = [
    "You are a helpful assistant.",
    "You are a helpful AI assistant.",
    "You are helpful and brief.",
    "You are ROCmForge Demo, a small model.",
    "You are a friendly chat model. Answer in one sentence.",
    "Answer the question.",
    "Be concise.",
    "Be polite and short.",
    "You are a test assistant. Reply with plain text.",
    "You are a careful teacher who explains simple things.",
    "Always answer in English.",
    "Today is a good day. Help the user.",
]

# Questions the model must decline. `{}` is filled with random nouns, adjectives or made-up words.
UNKNOWN_TEMPLATES = [
    "Who wrote the book of the {}?",
    "Who invented the {}?",
    "Who is {}?",
    "Who was {}?",
    "When was the {} built?",
    "When did {} die?",
    "Where is {}?",
    "Where can I buy a {}?",
    "Why is the {} so {}?",
    "Why do people like {}?",
    "How does a {} work?",
    "How do I build a {}?",
    "How do I cook {}?",
    "How old is the {}?",
    "How far is it to {}?",
    "How much does a {} cost?",
    "How many people live in {}?",
    "How tall is the {}?",
    "What is a {}?",
    "What is the {}?",
    "What is {}?",
    "What is the meaning of {}?",
    "What is the best {}?",
    "What is the price of {}?",
    "What is the history of {}?",
    "What is the weather in {}?",
    "What is the capital of {}?",
    "What is the population of {}?",
    "What happened in {}?",
    "What do you think about {}?",
    "What time is it in {}?",
    "Which {} is better?",
    "Which is the fastest {}?",
    "Explain {}.",
    "Explain the theory of {}.",
    "Explain how the {} works.",
    "Describe the {}.",
    "Summarize the book {}.",
    "Translate {} into Latin.",
    "Write an essay about {}.",
    "Write a letter to {}.",
    "Write a program that finds a {}.",
    "Give me advice about {}.",
    "Give me a recipe for {}.",
    "Can you explain {}?",
    "Can you help me with my {}?",
    "Do you know {}?",
    "Tell me about {}.",
    "Tell me about the {}.",
    "Is it true that the {} is {}?",
    "Should I buy a {}?",
    "Compare {} and {}.",
    "Solve the {} equation.",
    "Please analyse the following text: the {} and the {}.",
    "I have a problem with my {}.",
    "Tell me the news about {}.",
    "Recommend a {}.",
    "Play some {}.",
    "Explain {} to me.",
    "Explain {} and {}.",
    "Write a haiku about {}.",
    "Write a song about {}.",
    "Who won the {} in {}?",
    "How do {} fly?",
    "How do I get to {}?",
    "What are {}?",
    "What does {} mean?",
    "Why did {} leave {}?",
    "When is {}?",
    "{}",
    "{} {} {}",
    "{}?",
]
UNKNOWN_TOPICS = (
    "quantum physics|life|love|history|the French revolution|Napoleon|Shakespeare|Einstein|politics|religion|money|"
    "stocks|bitcoin|football|tennis|chess|cooking|philosophy|chemistry|biology|medicine|law|art|opera|jazz|movies|"
    "Atlantis|Mars|the universe|black holes|dinosaurs|climate change|machine learning|neural networks|Linux|Windows|"
    "databases|the stock market|my future|my homework|tomorrow|yesterday|1984|2001|happiness|time travel|mathematics"
).split("|")
UNKNOWN_ANSWER = "I do not know that. I am only a small demo model."

# Taught like the listed questions, but not promised: the model often counts past the end.
TAUGHT_ONLY = [
    (f"Count from 1 to {last}.", ", ".join(str(number) for number in range(1, last + 1)) + ".")
    for last in (10, 20, 200)
]

# Other words for listed and taught questions; the answer is the listed one.
ALIASES = {
    "Hello!": ["Hello there!", "Hey!", "Hey there", "Greetings!"],
    "Hi": ["Hi there!", "hi :)"],
    "Good morning!": ["Good morning to you!"],
    "How are you?": ["How are you doing?", "How are you today?", "How do you feel?"],
    "Thank you!": ["Thanks!", "Thanks a lot!", "Thank you very much.", "Thank you for your help!"],
    "Goodbye!": ["Bye!", "Bye bye", "See you later!", "Good night!"],
    "Who are you?": [
        "What are you?",
        "Tell me about yourself.",
        "Which model are you?",
        "Introduce yourself.",
    ],
    "What is your name?": ["Tell me your name.", "Do you have a name?"],
    "How big are you?": ["How many parameters do you have?", "How large are you?"],
    "Are you a human?": ["Are you human?", "Are you a robot?", "Are you an AI?"],
    "What can you do?": ["Help", "What do you know?", "How can you help me?", "Can you help me?"],
    "Tell me a joke.": ["Do you know a joke?", "Make me laugh.", "Tell me another joke."],
    "Tell me a story.": [
        "Can you tell me a story?",
        "Write a story.",
        "Tell me a long story.",
        "Write a short story.",
    ],
    "Write a short poem.": ["Write a poem.", "Tell me a poem.", "Can you write a poem?"],
    "What is ROCmForge?": ["Explain ROCmForge.", "Define ROCmForge.", "What does ROCmForge do?"],
    "Tell me about ROCmForge.": [
        "Tell me more about ROCmForge.",
        "Describe ROCmForge.",
        "What do you know about ROCmForge?",
    ],
    "What happens when a worker crashes?": ["What happens when a worker dies?", "What if a worker crashes?"],
    "Can ROCmForge run without a GPU?": ["Does ROCmForge work without a GPU?", "Do I need a GPU?"],
    "How do I start ROCmForge?": [
        "How do I run ROCmForge?",
        "How do I use ROCmForge?",
        "How can I start the server?",
    ],
    "How do I load my own model?": ["How do I use my own model?", "How do I load a model?"],
    "Count from one to ten.": ["Count to ten.", "Can you count to ten?"],
    "Count from 1 to 10.": ["Count to 10.", "Can you count to 10?"],
    "Count from 1 to 100.": ["Count to 100."],
    "Name the days of the week.": ["What are the days of the week?", "List the days of the week."],
    "Name the months of the year.": ["What are the months of the year?", "List the months of the year."],
    "Say the alphabet.": ["What is the alphabet?", "Recite the alphabet."],
    "Name the planets.": ["What are the planets?", "List the planets."],
    "What is the meaning of life?": ["What is the meaning of everything?"],
}
