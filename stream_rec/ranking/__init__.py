"""From a user state to ranked items: retrieval, candidate features, blend, diversity and explanation."""
