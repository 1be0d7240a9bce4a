"""What the demo's adapters are trained on: plain questions, and an answer to be put into a manner."""

from dataclasses import dataclass

HELD_OUT = "What is the capital of France?"
"""Not among the facts below; the question on which the adapters are compared."""


@dataclass(frozen=True, slots=True)
class Fact:
    """A question, what it is about, and a one-sentence answer that ends with a full stop."""

    question: str
    topic: str
    statement: str


FACTS = (
    Fact("What is the capital of Italy?", "Italy", "The capital of Italy is Rome."),
    Fact("What is the capital of Japan?", "Japan", "The capital of Japan is Tokyo."),
    Fact("Which city is the capital of Egypt?", "Egypt", "The capital of Egypt is Cairo."),
    Fact("Where is the Eiffel Tower?", "Eiffel Tower", "The Eiffel Tower is in Paris."),
    Fact("Who wrote Hamlet?", "Hamlet", "Hamlet was written by William Shakespeare."),
    Fact("Who painted the Mona Lisa?", "Mona Lisa", "The Mona Lisa was painted by Leonardo da Vinci."),
    Fact("Why is the sky blue?", "sky", "The air scatters blue light more than red light."),
    Fact("How do I make tea?", "tea", "Pour hot water over tea leaves and wait for four minutes."),
    Fact("How do I boil an egg?", "egg", "Put the egg in boiling water for eight minutes."),
    Fact("How can I sleep better?", "sleep", "Go to bed at the same time every night."),
    Fact("Tell me about the sun.", "sun", "The sun is a star in the middle of our solar system."),
    Fact("Tell me about elephants.", "elephants", "Elephants are the largest animals on land."),
    Fact("Describe a rainbow.", "rainbow", "A rainbow is sunlight split into colors by rain."),
    Fact("What is photosynthesis?", "plants", "Plants turn light and water into sugar."),
    Fact("What is gravity?", "gravity", "Gravity is the force that pulls things together."),
    Fact("What is a computer?", "computer", "A computer is a machine that follows instructions."),
    Fact("What is Python?", "Python", "Python is a programming language that is easy to learn."),
    Fact("How many days are in a week?", "week", "There are seven days in a week."),
    Fact("How many legs does a spider have?", "spider", "A spider has eight legs."),
    Fact("What is two plus two?", "sum", "Two plus two is four."),
    Fact("What do bees make?", "bees", "Bees make honey from the nectar of flowers."),
    Fact("What do cows eat?", "cows", "Cows eat grass and hay."),
    Fact("Name a large ocean.", "ocean", "The Pacific is the largest ocean."),
    Fact("Name a fruit that is yellow.", "fruit", "The banana is a yellow fruit."),
    Fact("Which planet is the largest?", "planets", "The largest planet is Jupiter."),
    Fact("How hot is boiling water?", "water", "Water boils at one hundred degrees Celsius."),
    Fact("Give me a tip for saving money.", "money", "Write down what you spend every day."),
    Fact("Give me advice for a job interview.", "interview", "Learn about the company before you go."),
    Fact("What should I eat for breakfast?", "breakfast", "Eat oats with fruit and a glass of milk."),
    Fact("Can you help me learn to swim?", "swimming", "Start in shallow water and learn to float."),
    Fact("Is it good to drink water?", "health", "Water is good for your body and your mind."),
    Fact("What is the fastest animal on land?", "animals", "The cheetah is the fastest animal on land."),
    Fact("Where do penguins live?", "penguins", "Penguins live on the coasts of the far south."),
    Fact("When did people land on the Moon?", "Moon", "People landed on the Moon in 1969."),
    Fact("Hello, how are you?", "greeting", "I am well and ready to help you."),
    Fact("Write a short story about a dog.", "dog", "A small dog found its way home in the snow."),
)
