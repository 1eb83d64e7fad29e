"""What each task asks and answers: literal tables, so that a reader sees the stream at a glance."""

from __future__ import annotations

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ANIMALS = ("bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra")
"""In the order of the data set's labels."""
ICONS = (
    "ambulance", "anchor", "axe", "balloon", "bed", "bell", "bomb", "bone", "book", "brain", "bug", "bus", "cake",
    "calculator", "calendar", "camera", "car", "carrot", "clock", "cloud", "clover", "compass", "cookie", "crown",
    "diamond", "egg", "eye", "feather", "fish", "flag", "flower", "ghost", "gift", "hammer", "headphones", "heart",
    "key", "leaf", "magnet", "microscope", "pencil", "pizza", "rocket", "skull", "snowflake", "star", "sword",
    "umbrella",
)  # fmt: skip
EMOJI = ("animal", "face", "food", "person", "vehicle")
FLAGS = {
    "albania": "AL", "algeria": "DZ", "angola": "AO", "bahamas": "BS", "bangladesh": "BD", "barbados": "BB",
    "bhutan": "BT", "botswana": "BW", "brunei": "BN", "burundi": "BI", "cambodia": "KH", "cameroon": "CM",
    "cyprus": "CY", "dominica": "DM", "eritrea": "ER", "gabon": "GA", "georgia": "GE", "ghana": "GH", "grenada": "GD",
    "guyana": "GY", "haiti": "HT", "israel": "IL", "jamaica": "JM", "jordan": "JO", "kiribati": "KI", "kuwait": "KW",
    "laos": "LA", "lebanon": "LB", "lesotho": "LS", "libya": "LY", "malawi": "MW", "maldives": "MV", "malta": "MT",
    "nepal": "NP", "oman": "OM", "palau": "PW", "panama": "PA", "qatar": "QA", "rwanda": "RW", "seychelles": "SC",
    "singapore": "SG", "south korea": "KR", "sri lanka": "LK", "switzerland": "CH", "tunisia": "TN", "uruguay": "UY",
    "zambia": "ZM",
}  # fmt: skip
"""Country and its two-letter code; none of them is in MAPS."""
MAPS = (
    "argentina", "australia", "brazil", "canada", "chile", "china", "colombia", "cuba", "denmark", "egypt", "finland",
    "france", "germany", "greece", "iceland", "india", "indonesia", "iran", "ireland", "italy", "japan", "kazakhstan",
    "kenya", "madagascar", "mexico", "mongolia", "morocco", "mozambique", "new zealand", "nigeria", "norway",
    "pakistan", "peru", "philippines", "poland", "portugal", "saudi arabia", "somalia", "south africa", "spain",
    "sweden", "thailand", "ukraine", "vietnam",
)  # fmt: skip
CHARTS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh")
COUNTING = ("one", "two", "three", "four", "five")

INSTRUCTIONS: dict[str, tuple[str, str, str]] = {
    "digits": ("What digit is this?", "Which digit is written here?", "Read the digit."),
    "animals": ("What animal is this?", "Which animal has this shape?", "Name the animal."),
    "icons": ("What does this icon show?", "Name the icon.", "Which thing does the icon stand for?"),
    "icons_phosphor": ("What does this icon show?", "Name the icon.", "Which thing does the icon stand for?"),
    "emoji_category": (
        "What kind of thing is this emoji?",
        "Name the kind of this emoji.",
        "Which group is the emoji from?",
    ),
    "flags": ("Which country has this flag?", "Whose flag is this?", "Name the country of the flag."),
    "maps": ("Which country has this outline?", "What country is on this map?", "Name the country of the outline."),
    "charts": ("Which bar is the tallest?", "Find the highest bar.", "Which one of the bars is largest?"),
    "counting": ("How many shapes are there?", "Count the shapes.", "What is the number of shapes?"),
}
"""Three phrasings of each task's question."""
