"""The parts of the training recipe of kveik's built-in model: text in, checkpoint folder out."""
