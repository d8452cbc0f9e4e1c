"""How long a test waits before it says that something does not come.

The promises name seconds, and the product holds itself to them by clocks of its own. A test that measured them would fail on a
machine that has other things to do; so a test waits longer, but not as long as what it would see if the promise were broken.
"""

TOLD_WITHIN = 12.0
"""For what is told at once (promised: 3 s), and would else be noticed only by the 15 s of silence after it."""
BACK_WITHIN = 20.0
"""For what an interrupt ends (promised: 5 s), and would else go on for a minute or without end."""
WAIT = 60.0
"""For what must only come at all."""
