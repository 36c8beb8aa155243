"""The steps of the night, one module a step."""

import os

# One thread for each of TensorFlow's operations: the parts of a batch run side by side instead (models.autoencoder),
# and a night's scores are the same to the bit whatever number of cores a process finds.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
