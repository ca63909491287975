"""FR3E (First Return, Entropy-Eliciting Explore) as an asynchronous actor-learner system on Ray."""

__version__ = "0.1.0"
