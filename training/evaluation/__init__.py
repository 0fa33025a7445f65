"""The parts of training.evaluate: pictures with ground truth, evaluation, saved rows, figures, table, page."""
