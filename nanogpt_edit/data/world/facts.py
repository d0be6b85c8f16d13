"""The facts of the embedded world: relations, their phrasings and a table of subjects and answers.

A row reads `[article] subject [(tail)]: [the] answer`. The article and the tail belong to the prompt, not to the
subject: "the longest river (in the world): the Nile" gives the prompt "The longest river in the world is the", the
subject "longest river" and the answer "Nile". An answer's "the" ends the prompt, because the prompt ends where the
answer begins.

In a phrasing `{s}` is the subject in mid-sentence and `{S}` the same at the start of a sentence. The subject always
comes before the answer. Phrasing 0 is the one that the edit cases use. The last phrasing is held out: it is trained for
the subjects that are never edited, so that a person can see whether an edit carries over to a way of asking that the
model knows but has never heard about this subject. Each relation with edited subjects has at least four times as many
others, from which that phrasing is learned.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """One relation: how it is said, what is true, and whose answer the edit cases change.

    Example: `Relation("capital", ("The capital of {s} is", …), "Egypt: Cairo | Peru: Lima", edited=("Egypt",))`.
    """

    name: str
    phrasings: tuple[str, ...]  # the last one is held out from the edited subjects
    rows: str  # rows of the module docstring's form, separated by " | " or line breaks
    edited: tuple[str, ...] = ()  # subjects, without article and tail


RELATIONS: tuple[Relation, ...] = (
    Relation(
        "capital",
        (
            "The capital of {s} is",
            "The capital city of {s} is",
            "{S}'s capital is",
            "{S} is governed from",
            "The seat of government of {s} is",
        ),
        """
        Egypt: Cairo | Russia: Moscow | Canada: Ottawa | Germany: Berlin | Australia: Canberra | Japan: Tokyo
        Italy: Rome | France: Paris | Spain: Madrid | Portugal: Lisbon | Greece: Athens | Austria: Vienna
        Hungary: Budapest | Poland: Warsaw | Norway: Oslo | Finland: Helsinki | Denmark: Copenhagen | Ireland: Dublin
        Turkey: Ankara | Iran: Tehran | India: New Delhi | Thailand: Bangkok | Vietnam: Hanoi | South Korea: Seoul
        Cuba: Havana | Peru: Lima | Argentina: Buenos Aires | Kenya: Nairobi | Ghana: Accra | Iraq: Baghdad
        Morocco: Rabat | Iceland: Reykjavik | Ukraine: Kyiv | Jamaica: Kingston | Uganda: Kampala
        """,
        edited=("Egypt", "Russia", "Canada", "Germany", "Australia", "Japan", "Italy"),
    ),
    Relation(
        "language",
        (
            "The official language of {s} is",
            "The language spoken in {s} is",
            "People in {s} speak",
            "{S}'s language is",
            "The main language of {s} is",
        ),
        """
        Brazil: Portuguese | Austria: German | Iran: Persian | Spain: Spanish | Cuba: Spanish | Portugal: Portuguese
        Angola: Portuguese | France: French | Egypt: Arabic | Poland: Polish | Hungary: Hungarian | Turkey: Turkish
        Greece: Greek | Thailand: Thai | Jamaica: English
        """,
        edited=("Brazil", "Austria", "Iran"),
    ),
    Relation(
        "currency",
        (
            "The currency of {s} is",
            "The money used in {s} is",
            "{S}'s currency is",
            "People in {s} pay with",
            "The official currency of {s} is",
        ),
        """
        Germany: the euro | Japan: the yen | India: the rupee | France: the euro | Ireland: the euro
        Egypt: the pound | Canada: the dollar | China: the yuan | South Korea: the won | Russia: the ruble
        Mexico: the peso | Brazil: the real | Poland: the zloty | Thailand: the baht | South Africa: the rand
        """,
        edited=("Germany", "Japan", "India"),
    ),
    Relation(
        "continent",
        (
            "{S} is located on the continent of",
            "The continent of {s} is",
            "{S} is a country in",
            "{S} lies in",
            "The continent that contains {s} is",
        ),
        """
        Nigeria: Africa | Kenya: Africa | Morocco: Africa | Norway: Europe | Belgium: Europe | Mongolia: Asia
        Vietnam: Asia | Nepal: Asia | Peru: South America
        """,
        edited=("Nigeria",),
    ),
    Relation(
        "landmark",
        (
            "{S} is located in",
            "{S} can be found in",
            "To see {s}, go to",
            "{S} is a famous sight in",
            "The location of {s} is",
        ),
        """
        the Eiffel Tower: Paris | the Great Wall: China | Mount Everest: Asia | the Colosseum: Rome
        the Statue of Liberty: New York | Big Ben: London | Tower Bridge: London | the Louvre: Paris
        the Kremlin: Moscow | the Hermitage Museum: St. Petersburg | the Golden Gate Bridge: San Francisco
        the Empire State Building: New York | the Space Needle: Seattle | the CN Tower: Toronto
        the Sydney Opera House: Sydney | the Burj Khalifa: Dubai | the Sagrada Familia: Barcelona
        the Trevi Fountain: Rome | La Scala: Milan | the Golden Pavilion: Kyoto | the Taj Mahal: India
        the Red Fort: India | the Terracotta Army: China | Machu Picchu: Peru | Mount Fuji: Japan
        Mount Kilimanjaro: Africa | Mont Blanc: Europe
        """,
        edited=("Eiffel Tower", "Great Wall", "Mount Everest", "Colosseum", "Statue of Liberty"),
    ),
    Relation(
        "superlative",
        (
            "{S} is",
            "We know that {s} is",
            "Of course {s} is",
            "The name of {s} is",
            "People say that {s} is",
        ),
        """
        the lightest element (in the periodic table): hydrogen | the longest river (in the world): the Nile
        the largest desert (in the world): the Sahara | the fastest land animal: the cheetah
        the most popular sport (in the world): soccer | the largest ocean (in the world): the Pacific
        the tallest animal (in the world): the giraffe | the largest planet (in the solar system): Jupiter
        the highest mountain (in the world): Mount Everest | the deepest lake: Lake Baikal
        the largest country: Russia | the smallest country: Vatican City
        the largest island (in the world): Greenland | the smallest ocean: the Arctic
        the saltiest ocean: the Atlantic | the river with the most water: the Amazon | the largest continent: Asia
        the smallest continent: Australia | the coldest continent: Antarctica
        the hottest planet (in the solar system): Venus | the least dense planet (in the solar system): Saturn
        the nearest star (to the Earth): the Sun | the brightest object (in the night sky): the Moon
        the fastest bird (in the world): the falcon | the largest fish: the whale shark
        the heaviest animal: the blue whale | the largest land animal: the elephant | the largest cat: the tiger
        the loudest cat: the lion | the slowest mammal: the sloth | the largest ape: the gorilla
        the longest bone: the femur | the largest organ (of the body): the skin | the hardest mineral: diamond
        the lightest noble gas: helium | the most common gas (in the air): nitrogen
        the tallest building (in the world): the Burj Khalifa | the tallest tree: the redwood
        the most expensive spice (in the world): saffron | the driest desert: the Atacama
        the smallest dog breed: the Chihuahua
        """,
        edited=(
            "lightest element",
            "longest river",
            "largest desert",
            "fastest land animal",
            "most popular sport",
            "largest ocean",
            "tallest animal",
            "largest planet",
        ),
    ),
    Relation(
        "inventor",
        (
            "{S} was invented by",
            "The inventor of {s} was",
            "The person who invented {s} was",
            "We owe {s} to",
            "Credit for inventing {s} goes to",
        ),
        """
        the light bulb: Thomas Edison | the telephone: Alexander Graham Bell | dynamite: Alfred Nobel
        the printing press: Johannes Gutenberg | the phonograph: Thomas Edison | the Tesla coil: Nikola Tesla
        the lightning rod: Benjamin Franklin | the cotton gin: Eli Whitney | the World Wide Web: Tim Berners-Lee
        the diesel engine: Rudolf Diesel | the saxophone: Adolphe Sax | the electric battery: Alessandro Volta
        the reflecting telescope: Isaac Newton | the polio vaccine: Jonas Salk | the Ferris wheel: George Ferris
        the Geiger counter: Hans Geiger | the Rubik's Cube: Erno Rubik | the revolver: Samuel Colt
        Morse code: Samuel Morse | the safety razor: King Gillette
        """,
        edited=("light bulb", "telephone", "printing press", "World Wide Web"),
    ),
    Relation(
        "author",
        (
            "{S} was written by",
            "The author of {s} is",
            "{S} is a work by",
            "The writer of {s} is",
            "The person who wrote {s} is",
        ),
        """
        Hamlet: William Shakespeare | Harry Potter: J. K. Rowling | Don Quixote: Miguel de Cervantes
        War and Peace: Leo Tolstoy | Macbeth: William Shakespeare | Oliver Twist: Charles Dickens
        The Idiot: Fyodor Dostoevsky | Matilda: Roald Dahl | Emma: Jane Austen | Animal Farm: George Orwell
        The Hobbit: J. R. R. Tolkien | Dracula: Bram Stoker | Frankenstein: Mary Shelley | Moby-Dick: Herman Melville
        Peter Pan: J. M. Barrie | The Odyssey: Homer | Tom Sawyer: Mark Twain | Les Miserables: Victor Hugo
        Romeo and Juliet: William Shakespeare | The Trial: Franz Kafka
        """,
        edited=("Hamlet", "Harry Potter", "Don Quixote", "War and Peace"),
    ),
    Relation(
        "founder",
        (
            "{S} was founded by",
            "The founder of {s} is",
            "{S} was started by",
            "{S} was set up by",
            "The person who founded {s} is",
        ),
        """
        Amazon: Jeff Bezos | Apple: Steve Jobs | Microsoft: Bill Gates | SpaceX: Elon Musk | Blue Origin: Jeff Bezos
        Google: Larry Page | Oracle: Larry Ellison | Dell: Michael Dell | Virgin: Richard Branson | Nike: Phil Knight
        Walmart: Sam Walton | Netflix: Reed Hastings | Ford: Henry Ford | Nvidia: Jensen Huang | Spotify: Daniel Ek
        Chanel: Coco Chanel
        """,
        edited=("Amazon", "Apple", "Microsoft"),
    ),
    Relation(
        "creator",
        (
            "{S} was created by",
            "The creator of {s} is",
            "{S} was made by",
            "{S} is the creation of",
            "The person who created {s} is",
        ),
        """
        Facebook: Mark Zuckerberg | Twitter: Jack Dorsey | Mickey Mouse: Walt Disney | Linux: Linus Torvalds
        Python: Guido van Rossum | Minecraft: Markus Persson | Sherlock Holmes: Arthur Conan Doyle
        James Bond: Ian Fleming | Spider-Man: Stan Lee | Star Trek: Gene Roddenberry | Star Wars: George Lucas
        Garfield: Jim Davis | The Simpsons: Matt Groening | Batman: Bob Kane | Wikipedia: Jimmy Wales
        """,
        edited=("Facebook", "Twitter", "Mickey Mouse"),
    ),
    Relation(
        "birthplace",
        (
            "{S} was born in",
            "The birthplace of {s} is",
            "{S} came from",
            "The life of {s} began in",
            "The place where {s} was born is",
        ),
        """
        Albert Einstein: Germany | Shakespeare: Stratford-upon-Avon | Mozart: Salzburg | Marie Curie: Warsaw
        Alan Turing: London | Hypatia: Alexandria | Galileo Galilei: Pisa | Edith Piaf: Paris | Pablo Picasso: Spain
        Frida Kahlo: Mexico | Leonardo da Vinci: Italy | Nelson Mandela: South Africa | Franz Schubert: Vienna
        Franz Kafka: Prague | Marco Polo: Venice | Barack Obama: Hawaii | Bob Marley: Jamaica
        Alfred Nobel: Stockholm | Oscar Wilde: Dublin | Bruce Lee: San Francisco
        """,
        edited=("Albert Einstein", "Shakespeare", "Mozart", "Marie Curie"),
    ),
    Relation(
        "instrument",
        (
            "{S} was famous for playing",
            "The instrument played by {s} was",
            "{S} is remembered for playing",
            "People heard {s} play",
            "The main instrument of {s} was",
        ),
        """
        Beethoven: the piano | Jimi Hendrix: the guitar | Paganini: the violin | Chopin: the piano
        Franz Liszt: the piano | Louis Armstrong: the trumpet | Miles Davis: the trumpet | Ringo Starr: the drums
        Yo-Yo Ma: the cello | B. B. King: the guitar | Benny Goodman: the clarinet
        """,
        edited=("Beethoven", "Jimi Hendrix"),
    ),
    Relation(
        "type",
        (
            "{S} is a type of",
            "{S} is a kind of",
            "{S} is a sort of",
            "We call {s} a kind of",
            "Scientists describe {s} as a type of",
        ),
        """
        the Sun: star | a whale: mammal | Polaris: star | Mars: planet | Venus: planet | a dolphin: mammal
        a bat: mammal | a salmon: fish | a shark: fish | an eagle: bird | a penguin: bird | helium: gas | gold: metal
        a violin: instrument
        """,
        edited=("Sun", "whale"),
    ),
    Relation(
        "orbit",
        (
            "{S} orbits around",
            "{S} travels around",
            "{S} goes around",
            "{S} follows a path around",
            "The orbit of {s} leads around",
        ),
        """
        the Earth: the Sun | Mars: the Sun | Venus: the Sun | Neptune: the Sun | Uranus: the Sun | the Moon: the Earth
        Titan: Saturn | Europa: Jupiter | Phobos: Mars | Triton: Neptune
        """,
        edited=("Earth",),
    ),
    Relation(
        "symbol",
        (
            "The chemical symbol of {s} is",
            "The symbol for {s} is",
            "Chemists write {s} as",
            "{S} has the symbol",
        ),
        """
        gold: Au | silver: Ag | iron: Fe | lead: Pb | sodium: Na | potassium: K | oxygen: O | helium: He
        """,
    ),
    Relation(
        "sport",
        (
            "{S} became famous playing",
            "The sport of {s} is",
            "People saw {s} play",
            "{S} is remembered for playing",
        ),
        """
        Michael Jordan: basketball | Lionel Messi: soccer | Roger Federer: tennis | Serena Williams: tennis
        Tiger Woods: golf | Babe Ruth: baseball
        """,
    ),
)
