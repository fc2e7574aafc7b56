"What is found in captions and how they are edited: on every caption of the emoji scenes, and on 200 of photographs."

import re

import pytest

from parnb.cleaners.augmentation import edit_captions, synonyms, words_of
from parnb.data.pairs import article, mentions, plurals
from parnb.data.scenes import GROUNDS, NAMES, ONE, RELATIONS, TWO

# ours, in the manner of the captions of CC3M
PHOTOGRAPHS = """
a woman walks her dog along the beach at sunset
young man playing guitar on the steps of an old church
close up of fresh strawberries in a wooden bowl
aerial view of the harbour with sailing boats
portrait of a smiling businesswoman in her office
children running through a field of tall grass
snow covered mountains reflected in a calm lake
a plate of pasta with tomato sauce and basil
the bride and groom cut the wedding cake
vintage car parked in front of a hotel
football player celebrates after scoring a goal
a red double decker bus crosses the bridge
cute kitten sleeping on a soft blanket
construction workers pour concrete on the building site
actor arrives at the premiere of his new film
traffic at night on a busy street in the city
an elderly couple sitting on a bench in the park
hiker standing on the edge of a cliff
view of the ocean from a hotel balcony
freshly baked bread on a kitchen table
a flock of geese flying over the river
girl in a yellow raincoat jumping into a puddle
interior of a modern living room with large windows
firefighters try to put out the blaze
a slice of chocolate cake with whipped cream
politician speaks to reporters during a press conference
horses grazing in a green meadow on a sunny day
the ruins of an ancient temple on a hill
students listen to the lecture in a crowded hall
cup of coffee and an open book on the desk
fishing boats anchored in a small village
a cyclist rides through the forest in autumn
model walks the runway at the fashion show
surfer riding a huge wave
baby elephant drinking water next to its mother
illustration of a cartoon monster with a big smile
empty road leading through the desert
team of doctors performing surgery in the hospital
lighthouse on a rocky coast during a storm
a bunch of ripe bananas hanging from a tree
bartender prepares a cocktail with ice and lime
pop artist performs on stage at the festival
rows of colourful houses along the canal
father teaching his son how to swim
seamless pattern with leaves and flowers on white background
train passes through a tunnel in the mountains
soldiers march in the parade on independence day
a bowl of vegetable soup with herbs
silhouette of a man fishing at dawn
tourists taking pictures of the famous tower
butterfly resting on a purple flower
skyscrapers in the financial district at dusk
wooden bridge over a stream in the woods
chef slicing vegetables in a restaurant kitchen
the kitchen features white cabinets and a marble island
tennis player returns a shot during her match
a farmer drives his tractor across the field
friends toasting with glasses of champagne at a party
polar bear walking on thin ice
the stairs lead down to a hidden garden
old wooden door with a rusty lock
airplane taking off from the runway
teenage girl listening to music with headphones
a cat looks out of the window on a rainy day
blurred crowd of people in a shopping mall
christmas tree decorated with lights and ornaments
workers harvesting grapes in the vineyard
little boy blowing out the candles on his birthday cake
the cathedral seen from the other side of the square
ballet dancer posing in an empty studio
waterfall surrounded by tropical plants
policeman directing traffic at a crossroads
hand holding a smartphone with a blank screen
a group of zebras drinking at a waterhole
delicious hamburger with fries on a wooden board
statue of a king on horseback
abandoned factory covered with graffiti
a couple dancing in the rain
tents at a campsite beside the lake
scientist looking through a microscope in the laboratory
street musician playing the violin
fireworks light up the sky above the stadium
a monkey eating fruit in the zoo
portrait of a bearded man wearing a hat
race cars speed around the track
the moon rises over the roofs of the town
bedroom with a double bed and a view of the garden
squirrel holding a nut between its paws
a pile of colourful autumn leaves
woman practising yoga on a wooden deck
cargo ship leaving the port
lavender fields stretch to the horizon
basketball players fight for the ball
a jar of honey with a wooden spoon
family having a picnic under a large oak
sheep standing behind a wooden fence
an artist paints a mural on the wall
graduates throwing their caps into the air
a narrow alley with shops and restaurants
raindrops on the petals of a rose
skier racing down the slope
market stall selling spices and dried fruit
puppy playing with a ball on the lawn
historic castle surrounded by a moat
barefoot boy climbing a palm tree
a helicopter lands on the roof of the hospital
knitted sweater with a reindeer design
volunteers collecting rubbish on the shore
stack of old newspapers tied with string
the president shakes hands with the ambassador
golden retriever lying in the shade
a dish of grilled salmon with asparagus
wind turbines generating power on a hill
mechanic repairing the engine of a truck
astronaut floating in space above the earth
candles burning on a stone altar
girl with freckles and curly red hair
flooded streets after heavy rain
passengers waiting on the platform for the train
an owl perched on a branch at night
red chillies drying in the sun
mother reading a story to her daughter
the singer signs autographs for fans
bathroom with blue tiles and a round mirror
a turtle swimming over the coral reef
stone cottage with a thatched roof
two men playing chess in a cafe
vector icon of an envelope
frozen lake with a path through the snow
a plate of sushi with soy sauce and ginger
woman choosing shoes in a store
deer crossing the road in the fog
rock climber reaching for the next hold
the tailor measures the sleeve of a jacket
bees collecting nectar from sunflowers
a group of nuns walking past the fountain
steam locomotive pulling old carriages
glass of orange juice with ice cubes
the library of the old university
small plane flying over the islands
a tattooed man lifting weights in the gym
boxes stacked in a warehouse
a pizza coming out of the oven
penguins diving into the sea
black and white photograph of a staircase
swans and ducks on the pond
woman washing her hands at the sink
monks praying in front of a golden temple
an empty theatre with red seats
a sailor tying a rope on the deck
the pilot inspects his aircraft before the flight
hot air balloons rising over the valley
kids building a castle of sand
a glass vase with white tulips
wolf howling at the moon
nurse measuring the blood pressure of a patient
garden furniture on a terrace with flower pots
judge holding a wooden hammer
motorcycle leaning against a brick wall
the actress wore a long silver gown
camel caravan crossing the dunes
a shelf full of books and toys
steep path to the top of the volcano
people relaxing on the grass in summer
diver exploring a sunken ship
pumpkins for sale at a farm
a rainbow over the rooftops
close up of the keys of a piano
a tram waiting at the stop
old map of the kingdom
juicy watermelon cut into triangles
crane lifting steel beams
an eagle catching a fish
snowman with a carrot nose and a scarf
a carpenter sanding a table
street lamps in the mist
barn in a field of wheat
queen waves to the crowd from the balcony
hockey player falls on the ice
a cave with strange rock formations
laptop and notebook on a white desk
shepherd and his dog guarding the flock
fruit and nuts in paper bags
girls comparing their new dresses
a cliff top hotel with a swimming pool
parrots sitting on a branch
the groom kisses the bride
boy peeling an orange
shadow of a palm on the sand
a bride tossing her bouquet
gardener trimming the hedge
hands shaping clay on a wheel
a submarine at the naval base
crowded ferry approaching the pier
woman in a wheelchair painting
icicles hanging from the gutter
tiger hiding in the bushes
pancakes with syrup and berries
the old fisherman mends his nets
two cats sharing a basket beside the fireplace
"""


def scene_captions():
    "Each template of the emoji scenes with every relation and ground that it takes; the names remain to be filled in."
    grounds = [f"{article(g)} ground" for g in GROUNDS]
    for template in (*ONE, *TWO):
        for relation in RELATIONS if "{r}" in template else RELATIONS[:1]:
            for ground in grounds if "{g}" in template else grounds[:1]:
                yield template.replace("{r}", relation).replace("{g}", ground)


def test_scenes_contain_no_plural_of_a_concept():
    "So ASR-Text and poisoning at the scale tiny find what they found before plurals counted."
    forms = sorted({p for n in NAMES for p in plurals(n)}, key=len, reverse=True)
    found = re.compile(rf"\b(?:{'|'.join(map(re.escape, forms))})\b", re.I)
    names = [article(n) for n in NAMES]
    captions = {c.format(a=a, b=b) for c in scene_captions() for a, b in zip(names, names[1:] + names[:1])}
    assert len(captions) > 20_000 and not [c for c in captions if found.search(c)]
    assert not [(a, b) for a in NAMES for b in NAMES if a != b and b in plurals(a)]


@pytest.mark.parametrize(
    "caption", ["two slices of pizza", "Mice and a cat", "three knives", "cherries", "fishes", "a fish"]
)
def test_plurals_count(caption):
    concepts = ("slice of pizza", "mouse", "knife", "cherry", "fish")
    assert sum(mentions(caption, c) for c in concepts) == 1


def test_word_edits_change_captions_of_photographs():
    photographs = PHOTOGRAPHS.strip().splitlines()
    assert len(set(photographs)) == 200
    known = {
        source: sum(bool(synonyms(source)(w)) for c in photographs for w in words_of(c, source))
        for source in ("small", "wordnet")
    }
    assert known["wordnet"] > 10 * known["small"]
    unchanged = {source: 1 - edit_captions(photographs * 10, 0, source)[1] for source in known}
    print({source: f"{share:.1%} of the edits change nothing" for source, share in unchanged.items()})
    assert unchanged["wordnet"] < 0.2 < 0.45 < unchanged["small"]
