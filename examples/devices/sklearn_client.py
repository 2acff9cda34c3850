"""A device's application with a scikit-learn estimator.

quorate agent run --task sklearn_client:task
"""

from digits_of_this_device import examples
from sklearn.linear_model import SGDClassifier

import quorate as q

task = q.Task(q.clients.sklearn(SGDClassifier(loss="log_loss"), features=64, classes=10), data=examples)
