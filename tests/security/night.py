"""Runs commands of nightsift in this process, one after the other, each in an environment of its own.

Its argument is a JSON list of `[[word, …], {variable: value}]`; what each printed stands under a line with its words.
"""

import json
import os
import sys
from contextlib import suppress

from pipeline.cli import main

for words, environment in json.loads(sys.argv[1]):
    before = dict(os.environ)
    os.environ.update(environment)
    print("$", *words, flush=True)
    with suppress(SystemExit):
        main(words)
    sys.stderr.flush()
    os.environ.clear()
    os.environ.update(before)
