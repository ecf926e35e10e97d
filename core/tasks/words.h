/* words.h -- the vocabulary of the synthetic documents: common English words that every tokenizer knows in one to three tokens. */
#ifndef MOA_TASKS_WORDS_H
#define MOA_TASKS_WORDS_H

#define MOA_WORDS_N(list) ((int)(sizeof(list) / sizeof *(list)))

static const char *const moa_adjectives[] = {
    "able",    "ancient", "angry",   "bitter",   "black",   "blue",    "bold",    "brave",  "brief",
    "bright",  "broad",   "broken",  "brown",    "busy",    "calm",    "careful", "cheap",  "clean",
    "clear",   "clever",  "cold",    "common",   "cool",    "curious", "damp",    "dark",   "deep",
    "distant", "double",  "dry",     "eager",    "early",   "eastern", "empty",   "exact",  "faint",
    "fair",    "famous",  "fast",    "fierce",   "final",   "fine",    "firm",    "flat",   "formal",
    "frail",   "free",    "fresh",   "gentle",   "giant",   "glad",    "golden",  "grand",  "grateful",
    "gray",    "great",   "green",   "grim",     "happy",   "hard",    "harsh",   "heavy",  "hidden",
    "high",    "hollow",  "honest",  "huge",     "humble",  "idle",    "keen",    "kind",   "large",
    "late",    "lazy",    "light",   "little",   "lively",  "local",   "lonely",  "long",   "loose",
    "loud",    "loyal",   "lucky",   "massive",  "mellow",  "mild",    "modern",  "modest", "narrow",
    "neat",    "nervous", "noble",   "northern", "obvious", "odd",     "old",     "orange", "pale",
    "patient", "plain",   "polite",  "proud",    "pure",    "purple",  "quick",   "quiet",  "rare",
    "raw",     "ready",   "red",     "rich",     "rough",   "round",   "royal",   "sharp",  "short",
    "shy",     "silent",  "silver",  "simple",   "slow",    "small",   "smooth",  "soft",   "solid",
    "square",  "steep",   "strange", "strong",   "sudden",  "sweet",   "tall",    "tame",   "tender",
    "thick",   "thin",    "tidy",    "tight",    "tiny",    "tired",   "tough",   "upper",  "vague",
    "vast",    "violet",  "warm",    "weak",     "western", "white",   "wide",    "wild",   "wise",
    "wooden",  "yellow",  "young"};

static const char *const moa_nouns[] = {
    "anchor", "apple",  "arrow",   "badge",  "barrel",  "basket",  "beach",  "bell",   "bench",  "bird",
    "boat",   "bottle", "bow",     "branch", "bread",   "brick",   "bridge", "brush",  "bucket", "button",
    "cabin",  "cake",   "camel",   "camera", "candle",  "canvas",  "carpet", "cart",   "castle", "cave",
    "chain",  "chair",  "chest",   "cliff",  "clock",   "cloth",   "cloud",  "coat",   "coin",   "corner",
    "cotton", "cow",    "crow",    "crown",  "cup",     "desert",  "desk",   "dish",   "dog",    "door",
    "dragon", "drum",   "eagle",   "engine", "farm",    "feather", "fence",  "field",  "finger", "fire",
    "fish",   "flag",   "flower",  "forest", "fox",     "garden",  "gate",   "glass",  "glove",  "goat",
    "grain",  "hammer", "harbor",  "hat",    "hill",    "honey",   "horse",  "house",  "island", "jacket",
    "jar",    "kettle", "kid",     "king",   "kitchen", "knife",   "ladder", "lake",   "lamp",   "leaf",
    "lemon",  "letter", "lion",    "lock",   "market",  "meadow",  "mirror", "monkey", "moon",   "mountain",
    "mouse",  "mule",   "needle",  "nest",   "ocean",   "oven",    "owl",    "paddle", "page",   "paint",
    "palace", "paper",  "parrot",  "path",   "pencil",  "pepper",  "piano",  "pillow", "pipe",   "planet",
    "plate",  "pocket", "pond",    "potato", "prince",  "pump",    "rabbit", "rail",   "river",  "road",
    "rock",   "roof",   "room",    "rope",   "rose",    "sail",    "salt",   "sand",   "saddle", "school",
    "shadow", "sheep",  "shelf",   "shell",  "ship",    "shirt",   "shoe",   "singer", "snake",  "soap",
    "spoon",  "spring", "square",  "stable", "star",    "station", "stone",  "storm",  "stove",  "street",
    "sugar",  "table",  "temple",  "tent",   "ticket",  "tiger",   "torch",  "tower",  "train",  "tree",
    "tunnel", "valley", "village", "violin", "wagon",   "wall",    "wheel",  "window", "winter", "wolf"};

static const char *const moa_names[] = {
    "Adam",   "Alice",  "Anna",   "Arthur", "Barbara", "Ben",    "Carla",  "Charles", "Clara", "Daniel",
    "David",  "Diana",  "Edward", "Ellen",  "Emma",    "Eric",   "Eva",    "Felix",   "Frank", "George",
    "Grace",  "Hannah", "Harry",  "Helen",  "Henry",   "Irene",  "Jack",   "Jacob",   "James", "Jane",
    "John",   "Julia",  "Karl",   "Kate",   "Laura",   "Leo",    "Linda",  "Louis",   "Lucy",  "Maria",
    "Mark",   "Martin", "Mary",   "Max",    "Nina",    "Oliver", "Olivia", "Oscar",   "Paul",  "Peter",
    "Rachel", "Robert", "Rose",   "Ruth",   "Sam",     "Sarah",  "Simon",  "Sophie",  "Susan", "Thomas",
    "Tom",    "Victor", "Walter", "William"};

static const char *const moa_towns[] = {
    "Athens",   "Berlin", "Boston",  "Bristol", "Cairo",  "Chicago", "Denver", "Dublin",
    "Florence", "Geneva", "Hamburg", "Lima",    "Lisbon", "London",  "Madrid", "Milan",
    "Moscow",   "Munich", "Oslo",    "Oxford",  "Paris",  "Prague",  "Rome",   "Seattle",
    "Sydney",   "Tokyo",  "Toronto", "Venice",  "Vienna", "Warsaw",  "York",   "Zurich"};

static const char *const moa_colours[] = {"red",   "blue",   "green",  "yellow", "black",  "white",
                                          "brown", "purple", "orange", "pink",   "silver", "gray"};

/* of the filler: past tense, with an object */
static const char *const moa_verbs[] = {"carried", "painted", "found",    "watched",  "moved",  "cleaned",
                                        "sold",    "bought",  "repaired", "followed", "lifted", "opened",
                                        "closed",  "kept",    "noticed",  "washed",   "pushed", "drew",
                                        "hid",     "broke",   "covered",  "borrowed", "left",   "saw",
                                        "turned",  "tied",    "counted",  "brought",  "filled", "measured"};

static const char *const moa_places[] = {"near the",        "behind the",        "under the",    "beside the",
                                         "in front of the", "on the way to the", "far from the", "inside the",
                                         "next to the",     "above the",         "around the",   "past the"};

static const char *const moa_times[] = {
    "In the morning",  "Later that day", "After a while", "Before noon",   "In the evening", "Once again",
    "On the next day", "For some time",  "Every spring",  "At last",       "Without a word", "As always",
    "That same week",  "Long ago",       "Soon after",    "Toward the end"};

#endif
