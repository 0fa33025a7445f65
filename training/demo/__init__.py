"""The trainings of the demo policy and segmenter."""
