"""Why a user got an answer: the command, the facts, the contributions and the model that is asked."""
