"""A device's application with a reference model in NumPy.

quorate agent run --task numpy_client:task
"""

from digits_of_this_device import examples

import quorate as q

task = q.Task(q.models.softmax(64, 10), data=examples)
