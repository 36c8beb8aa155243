"""Speed and accuracy, measured: one module a question, each a single run."""
