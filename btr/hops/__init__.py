"""Answer a question in several steps: what a step finds out makes the query of the next.

In: a question, a store and what it is searched with. Out: `Hopped`: the answer of the last step, its passages, and of
every step what it asked for, what it read and what it found (`Step`). `steps` is the loop, which knows neither passages
nor words, `answer` the steps of a question; `speculation` takes the same steps sooner, `pace` knows when it can.
"""

from btr.hops.answer import Hopped, Step, answer_in_hops
from btr.hops.pace import Pace

__all__ = ["Hopped", "Pace", "Step", "answer_in_hops"]
